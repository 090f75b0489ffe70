//! The built-in module `auth` as a program: started by the supervisor, in its cage.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    openred_module::run(openred_auth::Auth::default())
}
