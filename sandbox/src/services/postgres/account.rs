//! Under which account Postgres runs: it refuses root.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::{User, geteuid};

use crate::error::{Error, Result};
use crate::process::Account;

/// Our own (`None`), unless we are root: then `postgres`, which its package makes, or `nobody`.
pub(crate) fn for_directory(directory: &Path) -> Result<Option<Account>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    let user = user.ok_or_else(|| Error::Missing {
        program: "an account other than root".to_owned(),
        advice: "Postgres refuses to run as root: add a user `postgres`, or start the sandbox as another user".to_owned(),
    })?;
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    Ok(Some(Account { uid, gid, pass_directories: !passable(directory, uid, gid) }))
}

/// Whether the account may pass all directories down to `path`. Access lists are not looked at: they only ever lead to
/// the capability being used where it was not needed.
fn passable(path: &Path, uid: u32, gid: u32) -> bool {
    path.ancestors().filter(|directory| directory.exists()).all(|directory| {
        std::fs::metadata(directory).is_ok_and(|metadata| {
            let bit = if metadata.uid() == uid {
                0o100
            } else if metadata.gid() == gid {
                0o010
            } else {
                0o001
            };
            metadata.mode() & bit != 0
        })
    })
}
