"""Many training runs: a study is planned as runs, which are trained, recorded and timed."""
