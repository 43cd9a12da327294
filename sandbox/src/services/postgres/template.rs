//! A finished data directory to copy from, so that each test can have a cluster of its own.
//!
//! Making one takes seconds (initdb, roles, databases, all migrations); copying it takes a tenth of one. It is made once
//! for a Postgres version and a build of `api`, whose binary carries the migrations, below the build directory.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Cluster, Durability};
use crate::directory::{copy_tree, make};
use crate::error::{Doing, Error, Result};
use crate::host::Host;
use crate::programs::Programs;
use crate::secrets::Secrets;

/// Raise this when the way a template is made changes.
const RECIPE: u32 = 4;
/// Templates of earlier builds that are kept.
const KEPT: usize = 2;
/// Another process may be making the same template; one takes seconds.
const LOCK_WITHIN: Duration = Duration::from_mins(2);

/// Puts a copy of the template at `data` and returns the passwords that hold in it. `migrations` is the program that
/// brings them, or `None` for databases without a schema.
pub(super) async fn copy_to(data: &Path, cache: &Path, host: &Host, migrations: Option<&Programs>) -> Result<Secrets> {
    let templates = cache.join("templates");
    make(&templates)?;
    let cluster = Cluster::find(&templates, None)?;
    let build = match migrations {
        Some(programs) => identity(&programs.api()?)?,
        None => "bare".to_owned(),
    };
    let template = templates.join(format!("{}-{build}-{RECIPE}", cluster.installation.version));

    let lock = lock(&templates.join("lock"), Hold::Shared).await?;
    if !template.exists() {
        drop(lock);
        let making = self::lock(&templates.join("lock"), Hold::Alone).await?;
        if !template.exists() {
            make_template(&template, &cluster, host, migrations).await?;
            prune(&templates);
        }
        making.unlock().doing(|| "unlock the templates".to_owned())?;
        // Somebody with another build may prune in between, at worst what he does not know to be in use; the copy says so.
    }
    let _copying = self::lock(&templates.join("lock"), Hold::Shared).await?;
    let owner = cluster.account.map(|account| (account.uid, account.gid));
    let (from, to) = (template.join("data"), data.to_owned());
    tokio::task::spawn_blocking(move || copy_tree(&from, &to, owner))
        .await
        .map_err(|_| Error::Stopping)?
        .doing(|| format!("copy the template {}", template.display()))?;
    Secrets::kept_in(&template.join("secrets.json"))
}

async fn make_template(template: &Path, cluster: &Cluster, host: &Host, migrations: Option<&Programs>) -> Result<()> {
    let partial = template.with_added_extension("partial");
    let _ = std::fs::remove_dir_all(&partial);
    make(&partial)?;
    let secrets = Secrets::kept_in(&partial.join("secrets.json"))?;
    let data = partial.join("data");
    cluster.initialise(&data, &secrets, Durability::Fast, host, &partial.join("initdb.log")).await?;
    let postgres = cluster.serve(data, secrets, Durability::Fast, host, &partial.join("postgres.log"))?;
    postgres.start().await?;
    postgres.provision().await?;
    if let Some(programs) = migrations {
        programs.migrate(host, &postgres.owner_url(), &partial.join("migrate.log")).await?;
        postgres.open_logins().await?;
    }
    postgres.stop().await?;
    // What the making wrote is a third of the directory, and would be copied for each test.
    cluster.drop_log(&partial.join("data"), host, &partial.join("initdb.log")).await?;
    std::fs::rename(&partial, template).doing(|| format!("finish the template {}", template.display()))
}

/// Which build of a program this is. Its bytes would say it better, but hashing a debug build takes longer than a test.
fn identity(program: &Path) -> Result<String> {
    let metadata = std::fs::metadata(program).doing(|| format!("look at {}", program.display()))?;
    Ok(format!("{:x}-{:x}-{:x}", metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

#[derive(Clone, Copy)]
enum Hold {
    Shared,
    Alone,
}

async fn lock(path: &Path, hold: Hold) -> Result<File> {
    let path: PathBuf = path.to_owned();
    let waiting = tokio::task::spawn_blocking(move || {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match hold {
            Hold::Shared => file.lock_shared()?,
            Hold::Alone => file.lock()?,
        }
        Ok::<_, std::io::Error>(file)
    });
    match tokio::time::timeout(LOCK_WITHIN, waiting).await {
        Ok(locked) => locked.map_err(|_| Error::Stopping)?.doing(|| "lock the templates".to_owned()),
        Err(_) => Err(Error::Invalid(format!("another process has held the templates for {} s: end it", LOCK_WITHIN.as_secs()))),
    }
}

/// Removes what was left by interrupted makers, and all but the newest templates. Called by who holds them alone.
fn prune(templates: &Path) {
    let Ok(entries) = std::fs::read_dir(templates) else {
        return;
    };
    let mut all: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    all.sort();
    for (_, old) in all.iter().rev().skip(KEPT + 1) {
        let _ = std::fs::remove_dir_all(old);
    }
}
