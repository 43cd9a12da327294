//! Show 7: mixed load with random faults for a long time; nothing may grow.
