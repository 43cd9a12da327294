-- Whose turn it is: the dispatcher goes from tenant to tenant by this index, whatever each has waiting.
CREATE INDEX job_waiting_turn ON job_waiting (queue, priority, tenant_id, run_at, job_id);
