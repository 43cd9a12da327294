//! Other people's programs as judges: Python with packages from `PyPI`, installed once beside what was built.

use std::path::Path;
use std::process::Command;

use crate::directory::make;
use crate::error::{Doing, Error, Result};
use crate::programs::Programs;

/// `python3` that can import these packages (`standardwebhooks==1.1.0`), or only its own; what it shall do is the caller's to add.
///
/// # Errors
/// When there is no Python with pip, or the packages can't be fetched; with what pip said.
pub fn python(packages: &[&str]) -> Result<Command> {
    if packages.is_empty() {
        return Ok(Command::new("python3"));
    }
    let cache = Programs::beside_us()?.cache();
    make(&cache)?;
    let name: String = packages.join("-").chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let home = cache.join(format!("python-{name}"));
    if !home.exists() {
        install(packages, &home)?;
    }
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", home).env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(python)
}

fn install(packages: &[&str], home: &Path) -> Result<()> {
    // Under a name of its own and then moved: another test may be doing the same.
    let own = home.with_extension(std::process::id().to_string());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&own).args(packages);
    let output = pip.output().doing(|| "run python3; .ci/prepare python installs it".to_owned())?;
    if !output.status.success() {
        return Err(Error::Command {
            command: format!("python3 -m pip install {}", packages.join(" ")),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    if std::fs::rename(&own, home).is_err() {
        let _ = std::fs::remove_dir_all(&own);
    }
    Ok(())
}

/// `node` that can import these packages from npm (`opossum@10.0.0`), with the directory that it must be run in; what it shall do is the
/// caller's to add.
///
/// # Errors
/// When there is no Node with npm, or the packages can't be fetched; with what npm said.
pub fn node(packages: &[&str]) -> Result<Command> {
    let cache = Programs::beside_us()?.cache();
    make(&cache)?;
    let name: String = packages.join("-").chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let home = cache.join(format!("node-{name}"));
    if !home.exists() {
        // Under a name of its own and then moved: another test may be doing the same.
        let own = home.with_extension(std::process::id().to_string());
        make(&own)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error", "--prefix"])
            .arg(&own)
            .args(packages);
        let output = npm.output().doing(|| "run npm; .ci/prepare node installs it".to_owned())?;
        if !output.status.success() {
            return Err(Error::Command {
                command: format!("npm install {}", packages.join(" ")),
                status: output.status.to_string(),
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
            });
        }
        if std::fs::rename(&own, &home).is_err() {
            let _ = std::fs::remove_dir_all(&own);
        }
    }
    let mut node = Command::new("node");
    node.current_dir(home);
    Ok(node)
}
