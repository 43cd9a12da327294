//! Show 5: jobs that panic, hang, spin, end their process, take all memory, or can't be read.
