"""The longer statements of :mod:`ems.store`."""

from __future__ import annotations

ADD = """
INSERT INTO experiments (id, name, created_at, script, target, executor, snapshot, n_runs, message, spec)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

RUN_TABLE = """
SELECT r.id, r.params, r.state, r.experiment_id, e.name, r.idx, r.slurm_state, r.attempt, coalesce(a.started_at, ''),
       a.wall_s, a.max_rss_mb, coalesce(a.gpus, ''), coalesce(a.host, ''), r.reason, r.seed
FROM runs r JOIN experiments e ON e.id = r.experiment_id
LEFT JOIN attempts a ON a.run_id = r.id AND a.attempt = r.attempt
WHERE r.experiment_id = ? ORDER BY r.idx
"""

# The chain of a run is its last attempt and those that it resumed from; attempt 0 stands for files that belong to the
# run as a whole. A bare column beside max() is of the row that has the maximum (SQLite's documented rule).
CURVES = """
WITH RECURSIVE chain (run_id, attempt) AS (
    SELECT id, attempt FROM runs WHERE experiment_id = ?1
    UNION SELECT id, 0 FROM runs WHERE experiment_id = ?1
    UNION SELECT a.run_id, a.resumed_from FROM chain c
    JOIN attempts a ON a.run_id = c.run_id AND a.attempt = c.attempt WHERE a.resumed_from IS NOT NULL
)
SELECT idx, step, value, text FROM (
    SELECT r.idx, p.step, p.value, p.text, max(p.attempt)
    FROM runs r JOIN chain c ON c.run_id = r.id
    JOIN points p ON p.run_id = r.id AND p.attempt = c.attempt
        AND p.metric_id = (SELECT id FROM metrics WHERE name = ?2)
    WHERE r.experiment_id = ?1 GROUP BY r.idx, p.step
) ORDER BY idx, step
"""

COUNTS = """
SELECT experiment_id, state, count(*) FROM runs WHERE experiment_id IN (SELECT value FROM json_each(?))
GROUP BY experiment_id, state
"""

LAST_END = """
SELECT max(coalesce(nullif(a.ended_at, ''), a.started_at)) FROM runs r JOIN attempts a ON a.run_id = r.id
WHERE r.experiment_id = ?
"""

ATTEMPTS = """
SELECT r.idx, a.attempt, a.chunk, a.state, a.host, a.pid, a.job, a.slurm_state, a.started_at, a.ended_at, a.exit_code,
       a.signal, a.reason, a.gpus, a.max_rss_mb, a.cpu_s, a.wall_s, a.resumed_from
FROM attempts a JOIN runs r ON r.id = a.run_id WHERE r.experiment_id = ? AND r.idx = ? ORDER BY a.attempt
"""

METRIC_NAMES = """
SELECT id, name FROM metrics m WHERE EXISTS (
    SELECT 1 FROM runs r JOIN summaries s ON s.run_id = r.id AND s.metric_id = m.id
    WHERE s.n > 0 AND r.experiment_id IN (SELECT value FROM json_each(?))
) ORDER BY id
"""

SUMMARIES = """
SELECT s.run_id, s.metric_id, s.last, s.last_text, s.min, s.max, s.sum, s.n, s.n_nan, s.n_text, s.last_step
FROM runs r JOIN summaries s ON s.run_id = r.id WHERE r.experiment_id = ? AND s.n > 0
ORDER BY s.run_id, s.metric_id
"""

COMPLETED = """
SELECT key, experiment_id || '/' || idx FROM runs
WHERE state = 'COMPLETED' AND key IN (SELECT value FROM json_each(?)) ORDER BY id
"""
