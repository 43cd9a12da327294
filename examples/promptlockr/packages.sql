-- The Debian package catalogue as one table: some 60,000 records of real, messy text to export.
-- Run in the promptlockr database after schema.sql, by the same owner.
--
-- One row stands for one stanza of `apt-cache dumpavail`. A column is its field's name in lower case with `-` as `_`
-- (`Installed-Size` is installed_size, `MD5sum` is md5sum); fields without a column are left out; a field that the stanza
-- lacks is NULL. A value keeps its text exactly, without the one space after the colon: continuation lines of tag and
-- description keep their line feed and leading space.
--
-- Three fields are not text: installed_size (kibibytes), size (bytes), essential (`yes` is true).
-- Packages that are installed and in no repository have no size, filename or sha256, and a description of many lines.
CREATE TABLE packages (
    -- "C" collation: one order on every machine, and the primary key's index serves it.
    package         text COLLATE "C" NOT NULL,
    version         text COLLATE "C" NOT NULL,
    architecture    text COLLATE "C" NOT NULL,
    source          text,
    section         text,
    priority        text,
    essential       boolean,
    multi_arch      text,
    maintainer      text,
    installed_size  bigint,
    size            bigint,
    provides        text,
    pre_depends     text,
    depends         text,
    recommends      text,
    suggests        text,
    enhances        text,
    breaks          text,
    conflicts       text,
    replaces        text,
    built_using     text,
    tag             text,
    homepage        text,
    description     text,
    description_md5 text,
    filename        text,
    md5sum          text,
    sha256          text,
    -- dumpavail prints one version of a package for each architecture; the version is in the key so that a catalogue
    -- put together from several dumps fits too.
    PRIMARY KEY (package, architecture, version)
);

-- The packages dataset can be narrowed to one section.
CREATE INDEX packages_by_section ON packages (section);

GRANT SELECT ON packages TO offstage_source;
