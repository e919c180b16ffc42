"""The report of a study: its run directories are read, compared, and written up.

Arguments that many functions here share:

    findings  what a report knows of a study (comparison/findings.py)
    arm       the name of what is compared: the baseline, or the baseline with one line of configuration changed
    study     an ablations.study.Study, or a Collection (reading/collection.py)
    cells     {(arm, seed): content of the run directory} (reading/runs.py); a `cell` is one of these
    metric    the name of a metric, a key of METRICS (comparison/compare.py)
    results   {arm: {seed: result on the metric}}
    strata    the items of each task of the metric (eval/statistics/items.py)
"""
