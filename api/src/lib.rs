//! The HTTP door of Offstage: checks what comes in, stores it, hands it over, answers. No effect on the outside world
//! happens inside a request.
//!
//! The arrows run one way: `main → commands → routes → shared`. A request passes the [`edge`] (id, deadline, panics,
//! headers, figures), is [authenticated](auth) and [read](extract), and what goes wrong leaves as a [`problem`].
//! [`routes`] has one file a resource.

pub mod accept;
pub mod app;
pub mod arrival;
pub mod auth;
pub mod backlog;
pub mod commands;
pub mod edge;
pub mod events;
pub mod extract;
pub mod follow;
pub mod intake;
pub mod origin;
pub mod pace;
pub mod problem;
pub mod routes;
pub mod schema;
pub mod server;
