-- The chunks of a notification that have not been told: by which job each is, so that one whose job ended without telling is known. Who
-- tells a chunk takes its row away with its recipients.
CREATE TABLE notification_chunk (
    trigger_id uuid NOT NULL,
    chunk      integer NOT NULL,
    tenant_id  integer NOT NULL,
    job_id     uuid NOT NULL,
    recipients integer NOT NULL,                -- as they were counted: one who is erased meanwhile stands nowhere any more
    PRIMARY KEY (trigger_id, chunk)
);
ALTER TABLE notification_chunk ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY notification_chunk_engine ON notification_chunk TO offstage_engine USING (true) WITH CHECK (true);
CREATE POLICY notification_chunk_api ON notification_chunk TO offstage_api
    USING (tenant_id = current_tenant()) WITH CHECK (tenant_id = current_tenant());
GRANT SELECT, INSERT, UPDATE, DELETE ON notification_chunk TO offstage_engine;
GRANT SELECT ON notification_chunk TO offstage_api;
