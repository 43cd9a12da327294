//! The outside world in miniature, speaking real protocols.
//!
//! A [`Sandbox`] starts a private Postgres, a private Redis and an S3 server on ports of their own, supervises real `api`
//! and `worker` processes against them, and can make any of it fail, hang, slow down, stop or die. `make run` and the
//! acceptance tests both stand on it.
//!
//! ```no_run
//! # async fn example() -> sandbox::Result<()> {
//! use sandbox::{Fault, Options, Rule, Sandbox};
//!
//! let world = Sandbox::start(Options::test()).await?;
//! let api = world.api().await?;
//! let worker = world.worker().await?;
//! world.s3.faults().add(Rule::from(Fault::Status(503)).on("UploadPart").times(2));
//! worker.kill9().await?;
//! world.redis.flushall().await?;
//! println!("{} and {}", api.url(), world.redis.url());
//! # Ok(())
//! # }
//! ```
//!
//! What must stay true here: it depends on none of the product's crates (it runs what was built); nothing it starts
//! outlives the process that started it, however that ends; nothing it starts touches services of the machine; sandboxes
//! of any number of processes run side by side.

mod directory;
mod error;
pub mod example;
pub mod faults;
mod fleet;
mod guard;
mod host;
mod http;
pub mod judges;
pub mod local;
pub mod ports;
pub mod process;
mod programs;
mod random;
mod secrets;
pub mod services;
pub mod web;
mod world;

pub use error::{Error, Result};
pub use faults::{Fault, Faults, Rule};
pub use process::{Event, Exit, Process};
pub use programs::Launch;
pub use services::postgres::Durability;
pub use world::{Options, Sandbox};
