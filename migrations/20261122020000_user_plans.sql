-- The plan that a user is on, and plans that were added to it; NULL: the product's default.
ALTER TABLE end_user ADD COLUMN plan text, ADD COLUMN add_ons text[];
