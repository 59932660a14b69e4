"""What keeps an elastic cluster as its queue needs it: a service on the controller, ``python -m ems.cluster.elastic``.

SLURM's own power saving decides which nodes are there; the service makes and deletes their machines::

    here         the cluster as its controller knows it: record, provider by the machine's own identity
    spool        what ResumeProgram, SuspendProgram and ResumeFailProgram drop
    service      one turn after another: deletions, creations in bulk, reconcile
    standing     the heartbeat that nodes watch, and the status that people read
    table, reconcile, breaker, control    what is done where machines and SLURM do not agree, and the door to SLURM
    preemption, idle    what was taken back, and what happens when nobody needs the cluster
"""
