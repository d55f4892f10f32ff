"""Attention gates: one class and one file for each method, and the registry of their names.

A gate rescales a feature map (N, C, H, W). `Attention` is the base of all gates, `Gate` of those
whose multipliers follow from the pooled values of each channel, and `DescriptorGate` of those that
begin with one number a channel. `create_gate` builds a gate by its name, `register` enters a class
of your own, and `record_gates` records the multipliers during forward passes.
"""

from spem.gates.asr import ASR
from spem.gates.attention import Attention, Place, auxiliary_loss
from spem.gates.bam import BAM
from spem.gates.cbam import CBAM
from spem.gates.coordatt import CoordAtt
from spem.gates.danet import DANet
from spem.gates.dianet import DIANet
from spem.gates.eca import ECA
from spem.gates.ela import ELA
from spem.gates.ema import EMA
from spem.gates.ese import ESE
from spem.gates.fcanet import FcaNet
from spem.gates.gate import Gate
from spem.gates.gc import GC
from spem.gates.gct import GCT
from spem.gates.ge import GE
from spem.gates.grn import GRN
from spem.gates.hpda import HPDA
from spem.gates.ie import IE
from spem.gates.iebn import IEBN
from spem.gates.lct import LCT
from spem.gates.lsas import LSAS
from spem.gates.mca import MCA
from spem.gates.nam import NAM
from spem.gates.pooling import DescriptorGate, mixing_ratios
from spem.gates.psa import PSA
from spem.gates.record import GateStatistics, record_gates
from spem.gates.registry import GATES, create_gate, create_gate_at, gate_options, register
from spem.gates.sa import SA
from spem.gates.scse import SCSE
from spem.gates.se import SE
from spem.gates.sem import SEM
from spem.gates.sge import SGE
from spem.gates.simam import SimAM
from spem.gates.spa import SPA
from spem.gates.spem import SPEM
from spem.gates.srm import SRM
from spem.gates.srp import SRP
from spem.gates.triplet import Triplet

__all__ = [
    "ASR",
    "BAM",
    "CBAM",
    "ECA",
    "ELA",
    "EMA",
    "ESE",
    "GATES",
    "GC",
    "GCT",
    "GE",
    "GRN",
    "HPDA",
    "IE",
    "IEBN",
    "LCT",
    "LSAS",
    "MCA",
    "NAM",
    "PSA",
    "SA",
    "SCSE",
    "SE",
    "SEM",
    "SGE",
    "SPA",
    "SPEM",
    "SRM",
    "SRP",
    "Attention",
    "CoordAtt",
    "DANet",
    "DIANet",
    "DescriptorGate",
    "FcaNet",
    "Gate",
    "GateStatistics",
    "Place",
    "SimAM",
    "Triplet",
    "auxiliary_loss",
    "create_gate",
    "create_gate_at",
    "gate_options",
    "mixing_ratios",
    "record_gates",
    "register",
]

GATES.update(
    spem=SPEM,
    se=SE,
    eca=ECA,
    srm=SRM,
    gct=GCT,
    ie=IE,
    iebn=IEBN,
    cbam=CBAM,
    sge=SGE,
    fcanet=FcaNet,
    spa=SPA,
    dianet=DIANet,
    sem=SEM,
    lsas=LSAS,
    danet=DANet,
    srp=SRP,
    hpda=HPDA,
    asr=ASR,
    coordatt=CoordAtt,
    simam=SimAM,
    ese=ESE,
    gc=GC,
    triplet=Triplet,
    ema=EMA,
    nam=NAM,
    grn=GRN,
    bam=BAM,
    sa=SA,
    scse=SCSE,
    ge=GE,
    ela=ELA,
    lct=LCT,
    psa=PSA,
    mca=MCA,
)
