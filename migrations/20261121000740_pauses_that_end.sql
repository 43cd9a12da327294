-- A pause that the product makes itself (a mail server refuses us) ends by itself, or sooner by whoever resumes it. NULL: it ends when
-- somebody resumes it.
ALTER TABLE pause ADD COLUMN until timestamptz;
