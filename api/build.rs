//! The migrations are built into the program, so it must be built again when one is added.

fn main() {
    println!("cargo:rerun-if-changed=../migrations");
}
