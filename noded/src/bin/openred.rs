//! `openred`: the operator's command line and the supervisor (`openred up`). All of it is in the library, where it is tested.
#![forbid(unsafe_code)]

use zeroizing_alloc::ZeroAlloc;

// A passphrase comes through buffers of libraries that free them as they are; what is freed here is wiped.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

fn main() -> std::process::ExitCode {
    openred_node::cli::run()
}
