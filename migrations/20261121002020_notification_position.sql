-- no-transaction
-- New notifications are read in the order of the transactions that wrote them.
CREATE INDEX CONCURRENTLY notification_position ON notification (position);
