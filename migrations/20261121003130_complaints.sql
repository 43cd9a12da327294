-- A complaint of somebody who gets no mail already is kept as the reason.
GRANT UPDATE (reason, detail) ON suppression TO offstage_api;
