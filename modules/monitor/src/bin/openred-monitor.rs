//! The module `monitor` as a process of its own. Started by the node's supervisor alone; all of it is in the library.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    openred_module::run(openred_monitor::Monitor)
}
