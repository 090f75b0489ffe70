//! The command line's words. Their help texts are what `openred help` and the manual pages show; nothing acts here.

mod auth;
mod files;
mod links;
mod modules;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use openred_proto::id::NodeId;

pub(crate) use auth::{Auth, Totp, User};
pub(crate) use files::{Fetch, Files, Share};
pub(crate) use links::Link;
pub(crate) use modules::Module;

/// Heading of what every command takes.
const COMMON: &str = "Common options";

/// A node of OpenRed: keys in a process of their own, peers without a middleman
#[derive(Debug, Parser)]
#[command(name = "openred", version, term_width = 80, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// The node's home directory
    #[arg(long, global = true, help_heading = COMMON, env = "OPENRED_HOME", hide_env_values = true, value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Configuration file, if not openred.toml in the home directory
    #[arg(long, global = true, help_heading = COMMON, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Override one setting, such as log.level=debug
    #[arg(long, global = true, help_heading = COMMON, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Print JSON documents with a versioned schema
    #[arg(long, global = true, help_heading = COMMON)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How often to look.
#[derive(Debug, Args)]
pub(crate) struct Watching {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) every: u64,
    /// End after so many looks; without it, with Ctrl-C
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusOptions {
    /// Look again and again
    #[arg(long)]
    pub(crate) watch: bool,
    /// Seconds between two looks
    #[arg(long, requires = "watch", value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) every: u64,
    /// End after so many looks; without it, with Ctrl-C
    #[arg(long, requires = "watch", value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a node: home directory, configuration, sealed identity
    Init(Init),
    /// Run the node: start, confine and watch its processes
    Up(Up),
    /// Show how the node and its processes are
    Status(StatusOptions),
    /// Show what each process costs, again and again
    Top(Watching),
    /// Compare each process's cage with its manifest, from outside
    Doctor,
    /// The node's key: show, lock, unlock, rotate, backup, restore
    #[command(subcommand)]
    Key(Key),
    /// Backups of the whole node: make, verify, restore
    #[command(subcommand)]
    Backup(Backup),
    /// Links with other nodes
    #[command(subcommand)]
    Link(Link),
    /// Cipher suites of links: which are allowed, and what picks one
    #[command(subcommand)]
    Method(Method),
    /// Show which modules' hooks calls pass, in what order, and how they do
    Hooks,
    /// Modules: install, review, approve, remove; what they wrote
    #[command(subcommand)]
    Module(Module),
    /// Nodes this node knows
    #[command(subcommand)]
    Peers(Peers),
    /// Send a text to a linked node
    Send(Send),
    /// Show received messages
    Inbox(Inbox),
    /// Show sent messages, and what became of them
    Sent(Sent),
    /// Show conversations, or one of them
    Conversations(Conversations),
    /// Offer a file to linked nodes
    Share(Share),
    /// Fetch a file that a linked node shares, and verify it
    Fetch(Fetch),
    /// Lists of shared files; who may fetch them; links to them
    #[command(subcommand)]
    Files(Files),
    /// Who may use the operator's API over HTTP; challenges to peers
    #[command(subcommand)]
    Auth(Auth),
    /// The node's health: graph, figures for Prometheus, alerts
    #[command(subcommand)]
    Monitor(Monitor),
    /// The trail of what was done with the node's keys
    #[command(subcommand)]
    Audit(Audit),
    /// Check configuration files; needs neither network nor root
    Check {
        /// Files; openred.toml of the home directory if none is named
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// The configuration in force
    #[command(subcommand)]
    Config(Config),
    /// Show the version
    Version,
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// An existing directory
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Monitor {
    /// Show the node's parts, how each is, and what it needs
    Graph {
        /// With every layer of every cage
        #[arg(long)]
        all: bool,
    },
    /// Print the page that Prometheus reads
    Metrics,
    /// Show layers of cages that are off, and those that were
    Alerts,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Audit {
    /// Show the latest records
    Tail {
        /// How many
        #[arg(short = 'n', long, default_value_t = 20, value_name = "COUNT")]
        lines: usize,
        /// Go on with what comes
        #[arg(short, long)]
        follow: bool,
        /// Only what names this node; the vault of a running node knows how
        #[arg(long, value_name = "DID")]
        peer: Option<String>,
    },
    /// Look for changes, swaps, gaps and a cut end; needs no running node and no key
    Verify {
        /// Segments; those of the home directory if none is named
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// The node whose trail it must be
        #[arg(long, value_name = "DID")]
        node: Option<String>,
        /// A checkpoint that was kept elsewhere
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        #[command(flatten)]
        auditor: AuditorSource,
    },
    /// Print records as JSON lines, or the latest signed checkpoint
    Export {
        /// Segments; those of the home directory if none is named
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
        /// First sequence
        #[arg(long, value_name = "SEQUENCE", default_value_t = 0, conflicts_with = "checkpoint")]
        since: u64,
        /// The latest checkpoint, in base64, to be kept elsewhere
        #[arg(long)]
        checkpoint: bool,
        #[command(flatten)]
        auditor: AuditorSource,
    },
    /// Write the hash of a filed, sealed segment beside it, where an older
    /// version left none
    Digest {
        /// Number of the segment
        #[arg(value_name = "SEGMENT")]
        segment: u64,
        #[command(flatten)]
        auditor: AuditorSource,
    },
    /// Give up a trail that is lost: the next start begins anew and says so
    Restart,
}

/// Where a passphrase comes from; without any of these it is asked for on the terminal.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PassphraseSource {
    /// Read the passphrase from this file, readable by you alone
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Read the passphrase from this open descriptor, to its end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) passphrase_fd: Option<i32>,
}

/// What opens a keystore: a passphrase, or the identity of an age recipient it is sealed to.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct SecretSource {
    #[command(flatten)]
    pub(crate) passphrase: PassphraseSource,
    /// Read the age identity from this file, readable by you alone
    #[arg(long, value_name = "FILE", conflicts_with_all = ["passphrase_file", "passphrase_fd", "identity_fd"])]
    pub(crate) identity_file: Option<PathBuf>,
    /// Read the age identity from this open descriptor, to its end
    #[arg(long, value_name = "N", conflicts_with_all = ["passphrase_file", "passphrase_fd"])]
    #[arg(value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) identity_fd: Option<i32>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) secret: SecretSource,
    /// End when this process, which started this one, has ended
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) with_parent: Option<i32>,
}

/// What opens segments that are sealed to an auditor; without it they are counted and not read.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct AuditorSource {
    /// Read sealed segments with the auditor's age identity from this file
    #[arg(long, value_name = "FILE", conflicts_with = "identity_fd")]
    pub(crate) identity_file: Option<PathBuf>,
    /// The same from this open descriptor, to its end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) identity_fd: Option<i32>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Show the node's id, how its keystore is sealed, and whether it is open
    Show,
    /// Wipe the keys and end the processes that hold them; the rest goes on
    Lock,
    /// Open the keystore again and start new key processes
    Unlock(SecretSource),
    /// Write the sealed key into a file, as it is sealed or to recipients
    Backup {
        /// A new file
        file: PathBuf,
        #[command(flatten)]
        to: Recipients,
        #[command(flatten)]
        secret: SecretSource,
    },
    /// Bring a key back from such a file; the node must not run
    Restore {
        /// The file
        file: PathBuf,
        /// Move the key that is here aside
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        to: Recipients,
        #[command(flatten)]
        secret: SecretSource,
    },
    /// Draw a key anew: a short-lived one before its time, or, of a stopped node,
    /// its identity
    Rotate {
        /// The key
        what: Rotated,
        #[command(flatten)]
        secret: SecretSource,
    },
    /// Go on as an older identity, within 72 hours of its naming another; the
    /// node must not run
    TakeBack {
        /// Keystore of the older identity: a backup, or what the rotation moved
        /// aside
        #[arg(value_name = "OLDER", required_unless_present = "of", conflicts_with = "of")]
        older: Option<PathBuf>,
        /// The identity here is the older one, and somebody else named this one
        /// its successor
        #[arg(long, value_name = "DID")]
        of: Option<NodeId>,
        #[command(flatten)]
        secret: SecretSource,
        #[command(flatten)]
        older_secret: OlderSource,
    },
}

/// What opens an older keystore, where it is not what opens the one here.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct OlderSource {
    /// Read the older keystore's passphrase from this file, if it is another
    #[arg(long, value_name = "FILE", conflicts_with_all = ["of", "older_passphrase_fd"])]
    pub(crate) older_passphrase_file: Option<PathBuf>,
    /// Read it from this open descriptor, to its end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..), conflicts_with = "of")]
    pub(crate) older_passphrase_fd: Option<i32>,
    /// Read the age identity that opens the older keystore from this file
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["of", "older_passphrase_file", "older_passphrase_fd", "older_identity_fd"])]
    pub(crate) older_identity_file: Option<PathBuf>,
    /// Read it from this open descriptor, to its end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    #[arg(conflicts_with_all = ["of", "older_passphrase_file", "older_passphrase_fd"])]
    pub(crate) older_identity_fd: Option<i32>,
}

impl From<OlderSource> for SecretSource {
    fn from(older: OlderSource) -> Self {
        let passphrase =
            PassphraseSource { passphrase_file: older.older_passphrase_file, passphrase_fd: older.older_passphrase_fd };
        Self { passphrase, identity_file: older.older_identity_file, identity_fd: older.older_identity_fd }
    }
}

/// Whom a file is sealed to; without any, as the keystore is.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Recipients {
    /// Seal it to this age recipient; may be repeated
    #[arg(long, value_name = "AGE1…")]
    pub(crate) recipient: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Backup {
    /// Write key, state, database, configuration and the files that the node
    /// holds into one sealed file, and read it back; the node may run
    Create {
        /// A new file
        file: PathBuf,
        /// Leave out the files that the node shares and has fetched
        #[arg(long)]
        without_files: bool,
        #[command(flatten)]
        to: Recipients,
        #[command(flatten)]
        secret: SecretSource,
    },
    /// Read all of a backup: hashes, key, state, database, files
    Verify {
        /// The backup
        file: PathBuf,
        #[command(flatten)]
        secret: SecretSource,
    },
    /// Bring a node back from a backup, into a home without one
    Restore {
        /// The backup
        file: PathBuf,
        /// Move the node that is here aside
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        secret: SecretSource,
    },
}

/// What can be drawn anew.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Rotated {
    /// What offers to this node are sealed to
    Prekey,
    /// What handshakes are authenticated with, one a method
    Statics,
    /// The node's id: the old key names the new one, peers and directories
    /// follow, links are offered anew
    Identity,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Name for people, in the card; proves nothing
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Address of the peer-to-peer listener
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<SocketAddr>,
    /// URL under which peers reach the node; may be repeated
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Vec<String>,
    /// Directory to register with, did:key:…@URL; may be repeated
    #[arg(long, value_name = "DID@URL")]
    pub(crate) directory: Vec<String>,
    /// As root: first of the node's four uids
    #[arg(long, value_name = "UID")]
    pub(crate) uid_base: Option<u32>,
    /// Seal the keystore to this age recipient instead of a passphrase; may be
    /// repeated
    #[arg(long, value_name = "AGE1…", conflicts_with_all = ["passphrase_file", "passphrase_fd"])]
    pub(crate) recipient: Vec<String>,
    #[command(flatten)]
    pub(crate) passphrase: PassphraseSource,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Method {
    /// List methods, whether each is allowed, and how many links use it
    List,
    /// Allow a method that was disabled here, or that a module registered
    Allow {
        /// alpha, beta, gamma, delta, or MODULE/METHOD
        method: String,
    },
    /// Allow a method no longer; links that use it are renewed with another one
    Disable {
        /// alpha, beta, gamma, delta, or MODULE/METHOD
        method: String,
    },
    /// Choose what picks the method of a new link
    Schedule {
        /// hourly, daily or seeded
        schedule: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Peers {
    /// List known nodes
    List,
    /// Show one node
    Show {
        /// The node, did:key:…
        #[arg(value_name = "DID")]
        peer: String,
    },
    /// Take a node's offers from now on, whatever the policy says
    Allow {
        /// The node, did:key:…
        #[arg(value_name = "DID")]
        peer: String,
    },
    /// Refuse a node's offers from now on, whatever the policy says; a link that
    /// lives stays until it is revoked
    Deny {
        /// The node, did:key:…
        #[arg(value_name = "DID")]
        peer: String,
    },
    /// Measure requests to a linked node
    Ping(Ping),
    /// Forget a node without a link: its card, and what you said of its offers
    Forget {
        /// The node, did:key:…
        #[arg(value_name = "DID")]
        peer: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// The node, did:key:…
    #[arg(value_name = "DID")]
    pub(crate) peer: String,
    /// How many requests
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) count: u32,
    /// How many at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) concurrency: u32,
    /// Bytes in each
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(0..=1_048_576))]
    pub(crate) size: u32,
    /// Each over a new session
    #[arg(long)]
    pub(crate) fresh: bool,
    /// One response of this many bytes instead
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["count", "fresh", "size"])]
    pub(crate) bulk: Option<u64>,
    /// Ask this module instead of the built-in echo
    #[arg(long, value_name = "NAME")]
    pub(crate) module: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// The node, did:key:…
    #[arg(value_name = "DID")]
    pub(crate) peer: String,
    /// The text; `-` reads standard input
    pub(crate) text: String,
    /// Name a file in it, which the node may fetch then: a path, shared for that
    /// node now, or the id of a share; may be repeated
    #[arg(long, value_name = "PATH|ID")]
    pub(crate) attach: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Sent {
    /// Only to this node
    #[arg(long, value_name = "DID")]
    pub(crate) to: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Conversations {
    /// The messages with this node, both ways, left unread; without it, the
    /// list of all
    #[arg(value_name = "DID")]
    pub(crate) peer: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Inbox {
    /// Read ones as well
    #[arg(long)]
    pub(crate) all: bool,
    /// Only from this node
    #[arg(long, value_name = "DID")]
    pub(crate) from: Option<String>,
    /// Leave them unread
    #[arg(long)]
    pub(crate) peek: bool,
    /// Delete the messages of these numbers, or with --from and no number all
    /// of that node
    #[arg(long, value_name = "ID", num_args = 0.., conflicts_with_all = ["all", "peek"])]
    pub(crate) delete: Option<Vec<u64>>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show every setting
    Show {
        /// Where each value comes from
        #[arg(long)]
        origin: bool,
    },
}

/// Seconds, from a number and its unit; none where they are too many to count.
fn seconds(text: &str) -> Result<Option<u64>, &'static str> {
    let (number, unit) = text.split_at(text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("not a number with s, m, h or d behind it"),
    };
    Ok(number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_words_fit_together() {
        Arguments::command().debug_assert();
    }
}
