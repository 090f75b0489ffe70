//! `openred`: the operator's command line and the supervisor (`openred up`). All of it is in the library, where it is tested.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    openred_node::cli::run()
}
