"""The cards with the parameters of the library's gates, and gates with drawn parameters."""

import cards
import torch
from cards import batch_norm, linear, sigma
from torch import nn

from spem.gates import create_gate
from spem.norm import GatedBatchNorm2d

POOLS = [
    {},
    {"pool": "max"},
    {"pool": "min"},
    {"pool": "fixed", "mix": 0.3},
    {"pool": "adaptive"},
    {"pool": "adaptive", "mixing": "sigmoid"},
    {"pool": "srp", "rho": 1.0},
]


def drawn(name, channels, **options):
    gate = create_gate(name, channels, **options)
    for parameter in gate.parameters():
        nn.init.normal_(parameter, std=0.7)
    for module in gate.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return gate


def layers(*modules):
    """The weights and biases of layers, in this order."""
    return [tensor for m in modules for tensor in (m.weight, m.bias)]


def descriptor(g, x, pool="avg", mix=None, mixing="squared", rho=None, **_):
    if pool in ("avg", "srp"):
        return cards.average(x)
    if pool != "adaptive":
        return cards.mixed(x, {"max": 1, "min": 0, "fixed": mix}[pool])
    squared = mixing == "squared"
    return cards.mixed(x, cards.squared_share(g.pool_weight) if squared else sigma(g.pool_logit))


def se(g, x, **options):
    return sigma(cards.se_logits(descriptor(g, x, **options), *layers(g.fc1, g.fc2)))


def eca(g, x, **options):
    return sigma(cards.eca_logits(descriptor(g, x, **options), g.conv.weight[0, 0]))


def srm(g, x, **options):
    return sigma(batch_norm(cards.srm_style(x, g.style_weight, **options), g.bn))


def gct(g, x, **options):
    return cards.gct(x, g.alpha, g.gamma, g.beta, **options)


def ie(g, x, **options):
    return sigma(g.scale * descriptor(g, x, **options) + g.shift)


def cbam(g, x, pools=("avg", "max"), spatial=True, **_):
    multiplier = cards.cbam_channel(x, pools, *layers(g.fc1, g.fc2))[..., None, None]
    if not spatial:
        return multiplier
    planes = cards.cbam_spatial(x * multiplier, g.spatial.conv.weight)
    return multiplier * sigma(batch_norm(planes, g.spatial.bn))


def sge(g, x, groups, eps=1e-5):
    return cards.sge(x, groups, g.weight, g.bias, eps)


def fcanet(g, x, frequencies="top16", dct_size=7, **_):
    return cards.fcanet(x, frequencies, dct_size, g.fc1.weight, g.fc2.weight)


def spa(g, x, variant, source=None, **_):
    source = x if source is None else source
    unit = g.pyramid
    if g.matcher is not None:
        for layer in g.matcher:
            if isinstance(layer, nn.Conv2d):
                source = cards.pointwise(source, layer.weight)
            else:
                is_norm = isinstance(layer, nn.BatchNorm2d)
                source = batch_norm(source, layer) if is_norm else cards.relu(source)
    if variant.startswith("icme"):
        return cards.spa_icme(source, unit.fc1.weight, unit.last.weight)
    z = cards.pointwise(cards.spa_tmm_pyramid(source, unit.level_weight), unit.conv.weight)
    logits = cards.pointwise(cards.relu(batch_norm(z, unit.bn)), unit.last.weight)
    return cards.nearest(sigma(logits), *x.shape[2:])


def unit_of(g):
    return [layers(unit[0], unit[2]) for unit in (g.w_ih, g.w_hh)]


def dianet(g, x, **options):
    u = descriptor(g, x, **options)
    return cards.dianet_step(u, torch.zeros_like(u), torch.zeros_like(u), *unit_of(g))[0]


def sem(g, x, **options):
    u = descriptor(g, x, **options)
    a = sigma(linear(u, *layers(g.switch_fc)))
    o = [cards.se_logits(u, *layers(g.fc1, g.fc2)), cards.eca_logits(u, g.conv.weight[0, 0])]
    o.append(g.scale * u + g.shift)
    return sigma(a[:, :1] * o[0]) * sigma(a[:, 1:2] * o[1]) * sigma(a[:, 2:] * o[2])


def lsas(g, x, order=1, **options):
    s = cards.se_logits(descriptor(g, x, **options), *layers(g.fc1, g.fc2))
    product = sigma(s)
    for j in range(order):
        s = g.sub_scale[j] * s + g.sub_shift[j]
        product = product * sigma(s)
    return product


def danet(g, x, attention="both"):
    y = -x if attention == "both" else torch.zeros_like(x)
    if attention != "channel":
        convs = ((m.weight, m.bias) for m in (g.position.query, g.position.key, g.position.value))
        y = y + cards.danet_position(x, *convs, g.position.gamma)
    if attention != "position":
        y = y + cards.danet_channel(x, g.channel.gamma)
    return y


def hpda_maps(g, x):
    maps = []
    for first, norm, _, second, last in g.branches:
        z = cards.relu(batch_norm(cards.pointwise(x, first.weight, first.bias), norm))
        maps.append(sigma(batch_norm(cards.pointwise(z, second.weight, second.bias), last)))
    return maps


def hpda(g, x, **_):
    return torch.cat(hpda_maps(g, x), 1).max(1, keepdim=True).values


INNER = {"se": se, "eca": eca, "ie": ie, "sem": sem, "lsas": lsas}


def asr(g, x, attention="se", attention_options=None, both=False):
    options = attention_options or {}
    constant = INNER[attention](g.attention, g.vector[..., None, None], **options)
    if not both:
        return constant
    behind = INNER[attention](g.behind, x * constant[..., None, None], **options)
    return constant * behind


CARDS = {
    "se": se, "srp": se, "eca": eca, "srm": srm, "gct": gct, "ie": ie, "iebn": ie, "cbam": cbam,
    "sge": sge, "fcanet": fcanet, "spa": spa, "dianet": dianet, "sem": sem, "lsas": lsas,
    "danet": danet, "hpda": hpda, "asr": asr,
}  # fmt: skip


def case_id(value):
    return str(value).replace("'", "") if value != {} else "default"


def gated(name, gate, x, options):
    """x gated by the card."""
    result = CARDS[name](gate, x, **options)
    if name in ("sge", "danet"):
        return result
    return x * (result if result.dim() == 4 else result[..., None, None])


def drawn_norm(channels, gate):
    norm = GatedBatchNorm2d(channels, gate=gate)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.weight.data[0] = 0
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm
