//! The services that the product talks to, one file or folder each, all with the same verbs:
//!
//! | verb | effect |
//! |---|---|
//! | `start` | runs it at the same address as before, returns when it answers |
//! | `stop` | ends it in order |
//! | `kill9` | ends it as a power cut would |
//! | `pause`, `resume` | it stands still with its connections open, and goes on |
//!
//! What speaks HTTP-like protocols from inside this process (S3, mail, push, models) also has
//! [`faults`](crate::faults): it can be told to fail, hang and drop, S3 to slow down and to drop after so many bytes too, and records what
//! it was asked.

pub mod ai;
mod door;
pub mod mail;
pub mod postgres;
pub mod push;
pub mod redis;
pub mod s3;
