//! The words of `openred module`.

use std::path::PathBuf;

use clap::Subcommand;
use openred_module::manifest::{ModuleId, Version};
use openred_proto::id::NodeId;

#[derive(Debug, Subcommand)]
pub(crate) enum Module {
    /// For authors: write a module's project into a new folder
    New {
        /// The module's id, and the folder's name
        #[arg(value_name = "ID")]
        module: ModuleId,
        /// Take openred-module from this folder, modules/sdk of a source tree
        #[arg(long, value_name = "DIR")]
        sdk: Option<PathBuf>,
    },
    /// For authors: run the project of this folder, anew whenever it is saved
    Dev {
        /// On the node of --home, which must run, instead of a throw-away one
        #[arg(long)]
        node: bool,
    },
    /// Take a package in and show what it asks for; it waits for `approve`
    Install {
        /// A folder with openred.toml, openred.sig and the program, or an
        /// uncompressed tar of one
        path: PathBuf,
        /// Trust this publisher's key for this module
        #[arg(long, value_name = "DID")]
        publisher: Option<NodeId>,
        /// Approve all that it asks for at once
        #[arg(long)]
        approve: bool,
    },
    /// Grant what a module asks for, and let it run
    Approve {
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
        /// Only this, such as peer.send, kv.quota=16 or
        /// net.egress=HOST:PORT; may be repeated
        #[arg(long, value_name = "PERMISSION")]
        only: Vec<String>,
        /// The version that you have looked at, as `module show` prints it;
        /// needed where one waits
        #[arg(long, value_name = "VERSION:HASH")]
        shown: Option<String>,
    },
    /// Let an approved module run, out of quarantine too
    Enable {
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
    },
    /// End a module; what it keeps stays
    Disable {
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
    },
    /// Remove a module and what it keeps
    Remove {
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
        /// Leave its rows and files for a later installation
        #[arg(long)]
        keep_data: bool,
    },
    /// Have another version of a running module take over; no call fails
    Swap {
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
        /// A package of a newer version; without it the program as it lies
        /// there now takes over from the one that runs
        path: Option<PathBuf>,
        /// Go to this version, which is installed
        #[arg(long, value_name = "VERSION", conflicts_with = "path")]
        to: Option<Version>,
        /// Grant all that the package asks for
        #[arg(long, requires = "path")]
        approve: bool,
    },
    /// Go back to the last version that finished its probation
    Rollback {
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
        /// Also go back to the state of before, and put aside what was
        /// written since
        #[arg(long)]
        snapshot: bool,
    },
    /// Show which version is called, and how the last swap ended
    Generations {
        /// The module; all without
        #[arg(value_name = "ID")]
        module: Option<ModuleId>,
    },
    /// List the modules
    List,
    /// Show what a module is, what it asks for and what it may do
    Show {
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
    },
    /// Show what modules were granted, and what of it they ever used
    Audit {
        /// Only this one
        #[arg(value_name = "ID")]
        module: Option<ModuleId>,
    },
    /// Call an operator's route of a module and print what it answers
    Call {
        /// On the node where `openred module dev` runs this folder's project
        #[arg(long)]
        dev: bool,
        /// The module
        #[arg(value_name = "ID")]
        module: ModuleId,
        /// GET or POST
        #[arg(value_parser = ["GET", "POST"])]
        method: String,
        /// Path inside the module
        path: String,
        /// The request's body
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        data: String,
        /// The body's media type
        #[arg(long, value_name = "TYPE", default_value = "application/json")]
        content_type: String,
        /// Say on standard error what the answer waited for
        #[arg(long)]
        cost: bool,
    },
    /// Take packages that are signed with this publisher's key
    Trust {
        /// The key, did:key:…
        #[arg(value_name = "DID")]
        publisher: NodeId,
    },
    /// Take no more packages of a publisher; what is installed stays
    Distrust {
        /// The key, did:key:…
        #[arg(value_name = "DID")]
        publisher: NodeId,
    },
    /// List the publishers whose packages are taken
    Trusted,
    /// Show what a module wrote: its log lines, and its last words
    Logs {
        /// The module, as `openred status` names it
        #[arg(value_name = "ID")]
        module: String,
        /// How many of the last lines
        #[arg(short = 'n', long, default_value_t = 50, value_name = "COUNT")]
        lines: u32,
        /// Go on with what comes
        #[arg(short, long)]
        follow: bool,
    },
    /// Have a module started again that is under quarantine
    Release {
        /// The module, as `openred status` names it
        #[arg(value_name = "ID")]
        module: String,
    },
    /// For authors: make a publisher's key
    Key {
        /// A new file, readable by you alone
        file: PathBuf,
    },
    /// For authors: sign a manifest and its program into a package
    #[command(
        override_usage = "openred module sign [OPTIONS] --program <FILE> --key <FILE>\n                           --out <PATH> <MANIFEST>"
    )]
    Sign {
        /// The manifest, openred.toml
        manifest: PathBuf,
        /// The program as it was built
        #[arg(long, value_name = "FILE")]
        program: PathBuf,
        /// The publisher's key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// A new folder, or a new file ending with .tar
        #[arg(long, value_name = "PATH")]
        out: PathBuf,
    },
}
