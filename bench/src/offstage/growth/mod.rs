//! A ledger with a history: millions of finished jobs, and what that does to every figure and to what is looked up.
//!
//! A hundred jobs are run by a real worker; their rows, in whatever tables it left them, are then multiplied by plain SQL with new ids
//! and earlier times. So the history is what the engine writes, also after the engine has changed.

mod load;
mod lookups;

pub use lookups::Lookup;
