"""Hyperparameter search: trials of one config, kept in an Optuna study that processes share.

A trial is a run of ``fit`` with a config of its own, in a process of its own. What it costs and
how wrong it is are the two objectives; the front of both is the result. ``optuna`` is imported
only where a study is opened.
"""
