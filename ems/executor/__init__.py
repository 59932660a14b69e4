"""Where runs are executed: the :class:`~ems.executor.base.Executor` Protocol, ``here`` and ``slurm``."""
