-- no-transaction
-- A recipient has one row of a notification, whatever crashes.
CREATE UNIQUE INDEX CONCURRENTLY notification_once ON notification (trigger_id, owner) WHERE trigger_id IS NOT NULL;
