//! Which Postgres of this machine to run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// The oldest major version the product supports.
const OLDEST: u32 = 15;

/// One installed Postgres.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    directory: PathBuf,
    /// As in `15`.
    pub(crate) major: u32,
    /// As in `15.13`.
    pub(crate) version: String,
}

impl Installation {
    /// The one on the PATH, else the newest in the distributions' usual places. `major` asks for one version, since a data
    /// directory can be read by the major version that made it only.
    pub(crate) fn find(major: Option<u32>) -> Result<Self> {
        let suits = |found: &Self| found.major >= OLDEST && major.is_none_or(|major| major == found.major);
        let path = std::env::var_os("PATH").unwrap_or_default();
        if let Some(found) = std::env::split_paths(&path).filter_map(|directory| Self::at(&directory)).find(suits) {
            return Ok(found);
        }
        let newest = usual_places().into_iter().filter_map(|directory| Self::at(&directory)).filter(suits).max_by_key(|found| found.major);
        newest.ok_or_else(|| Error::Missing {
            program: match major {
                Some(major) => format!("Postgres {major}, which made this data,"),
                None => format!("Postgres {OLDEST} or newer"),
            },
            advice: "`make run` installs it; by hand: `apt-get install postgresql` or `brew install postgresql@17`".to_owned(),
        })
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The client, which Debian puts on the PATH by a package of its own.
    pub(crate) fn psql(&self) -> PathBuf {
        let beside = self.program("psql");
        if beside.is_file() { beside } else { PathBuf::from("psql") }
    }

    fn at(directory: &Path) -> Option<Self> {
        // A PATH may hold links to some of an installation's programs: all of them are where the server really lies.
        let postgres = directory.join("postgres").canonicalize().ok()?;
        let directory = postgres.parent()?;
        if !postgres.is_file() || !directory.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(&postgres).arg("--version").current_dir("/").output().ok()?;
        let (major, version) = parse_version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { directory: directory.to_owned(), major, version })
    }
}

/// `postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)`, `… 17beta1`, `… 16.9 (Homebrew)`.
fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    let digits = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
    Some((version.get(..digits)?.parse().ok()?, version.to_owned()))
}

/// Debian and Ubuntu, Red Hat, Homebrew on both kinds of Mac, Postgres.app.
fn usual_places() -> Vec<PathBuf> {
    let roots = [
        ("/usr/lib/postgresql", "", "bin"),
        ("/usr", "pgsql-", "bin"),
        ("/opt/homebrew/opt", "postgresql", "bin"),
        ("/usr/local/opt", "postgresql", "bin"),
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ];
    roots
        .into_iter()
        .flat_map(|(root, prefix, end)| {
            let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
            entries.filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix)).map(move |entry| entry.path().join(end))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_distributions_print_them() {
        assert_eq!(parse_version("postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)\n"), Some((15, "15.13".to_owned())));
        assert_eq!(parse_version("postgres (PostgreSQL) 17beta1"), Some((17, "17beta1".to_owned())));
        assert_eq!(parse_version("postgres (PostgreSQL) 16.9 (Homebrew)"), Some((16, "16.9".to_owned())));
        assert_eq!(parse_version("command not found"), None);
    }
}
