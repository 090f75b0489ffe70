//! `directory …`: the commands. Each reads the configuration, does one thing (alone, or by asking the running directory over
//! its admin socket), prints text or JSON, and ends with an exit code of docs/operations.md.

mod database;
mod decisions;
mod doctor;
mod log;
mod portable;
pub mod render;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use openred_proto::config::Source;
use serde::Serialize;

use crate::admin::{Answer, Ask, client};
use crate::config::{Config, Loaded, default_home};
use crate::daemon;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::replicas::target;
use crate::store::postgres;
use crate::{logging, mirror, reload, tls};

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "directory", version, about = "An OpenRed directory: registers nodes and routes sealed link offers")]
pub struct Arguments {
    /// Folder of key, database and admin socket.
    #[arg(long, global = true, value_name = "DIR", env = "OPENRED_DIRECTORY_HOME")]
    home: Option<PathBuf>,
    /// Configuration file; without it, directory.toml in the home, if there is one.
    #[arg(long, global = true, value_name = "FILE", env = "OPENRED_DIRECTORY_CONFIG")]
    config: Option<PathBuf>,
    /// Print JSON with a versioned schema.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make home, identity and, where settings are given, a configuration; print the address that nodes configure.
    Init {
        /// Address that the API listens on; written into a new directory.toml.
        #[arg(long, value_name = "IP:PORT")]
        listen: Option<SocketAddr>,
        /// What clients reach this directory by; written into a new directory.toml.
        #[arg(long, value_name = "URL")]
        origin: Option<String>,
    },
    /// Serve until SIGTERM.
    Serve,
    /// What `serve` starts beside itself: reads the configuration for it at SIGHUP.
    #[command(name = reload::COMMAND, hide = true)]
    ReadAgain {
        /// It speaks TLS: certificate and key are read as well.
        #[arg(long)]
        tls: bool,
    },
    /// Read the configuration and what it names, and say what is wrong. Needs neither network nor root.
    Check,
    /// Check the running directory: health, and each layer of its cage.
    Doctor,
    /// Say how the running directory is.
    Status,
    /// Count what is kept: nodes by sector and method, tombstones, invites.
    Stats,
    /// Look at nodes, let them in, ban and remove them.
    #[command(subcommand)]
    Nodes(decisions::Nodes),
    /// Let nodes in by invite.
    #[command(subcommand)]
    Invite(decisions::Invite),
    /// Show what operators changed, the newest first.
    History {
        /// Only before this number.
        #[arg(long, value_name = "NUMBER")]
        before: Option<u64>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Write cards, bans, invites and approvals as lines of JSON.
    Export {
        /// A new file; without it, the standard output.
        file: Option<PathBuf>,
    },
    /// Take over what `export` wrote. Cards count by their signatures and sequences.
    Import {
        /// The file; `-` for the standard input.
        file: PathBuf,
    },
    /// Look at the log of cards.
    #[command(subcommand)]
    Log(log::Log),
    /// Look after the database.
    #[command(subcommand)]
    Db(database::Db),
    /// Look at the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder.
    Man {
        /// The folder.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every setting that holds.
    Show {
        /// Say where each value comes from.
        #[arg(long)]
        origin: bool,
    },
}

/// Runs a command line.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap knows the code and the stream.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let json = arguments.json;
    match arguments.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ (Error::LocalDegraded | Error::LocalPartly)) => ExitCode::from(error.exit_code()),
        Err(error) => {
            complain(&error, json);
            ExitCode::from(error.exit_code())
        }
    }
}

fn complain(error: &Error, json: bool) {
    #[derive(Serialize)]
    struct Complaint<'a> {
        schema: &'a str,
        error: String,
        exit_code: u8,
    }
    let mut out = std::io::stderr().lock();
    let complaint =
        Complaint { schema: "openred.directory.error/1", error: error.to_string(), exit_code: error.exit_code() };
    // Nobody reads the standard error: then nobody needs the text.
    let _ = match serde_json::to_string(&complaint) {
        Ok(line) if json => writeln!(out, "{line}"),
        _ => writeln!(out, "directory: {error}"),
    };
}

impl Arguments {
    fn run(self) -> Result<()> {
        let json = self.json;
        match &self.command {
            Command::Version => return print(&render::version(json)),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut Arguments::command(), "directory", &mut script);
                return print(&String::from_utf8_lossy(&script));
            }
            Command::Man { folder } => {
                return clap_mangen::generate_to(Arguments::command(), folder)
                    .map_err(Error::file("write into", folder));
            }
            _ => {}
        }
        if let Command::ReadAgain { tls } = self.command {
            return reload::answer(tls, || Ok(Loaded::read(self.config.as_deref(), self.home.as_deref())?));
        }
        if let Command::Init { listen, origin } = &self.command {
            self.write_configuration(*listen, origin.as_deref())?;
        }
        let loaded = Loaded::read(self.config.as_deref(), self.home.as_deref())?;
        match self.command {
            Command::Init { .. } => init(&loaded, json),
            Command::Serve => {
                let level = logging::to_stderr(&loaded.config.log);
                daemon::run(&loaded, level)
            }
            Command::Check => check(&loaded, json),
            Command::Doctor => doctor::run(&loaded, json),
            Command::Status => status(&loaded, json),
            Command::Log(command) => log::run(&loaded, command, json),
            Command::Stats => decisions::stats(&loaded, json),
            Command::Nodes(command) => decisions::nodes(&loaded, command, json),
            Command::Invite(command) => decisions::invite(&loaded, command, json),
            Command::History { before, limit } => decisions::history(&loaded, before, limit, json),
            Command::Export { file } => portable::export(&loaded, file.as_deref(), json),
            Command::Import { file } => portable::import(&loaded, &file, json),
            Command::Db(command) => database::run(&loaded, &command, json),
            Command::Config(ConfigCommand::Show { origin }) => {
                let settings = loaded.source.settings(&loaded.config);
                let settings = settings.map_err(|_| Error::Misuse("the configuration cannot be shown"))?;
                print(&render::settings(&settings, origin, json))
            }
            Command::ReadAgain { .. } | Command::Version | Command::Completions { .. } | Command::Man { .. } => Ok(()),
        }
    }
}

impl Arguments {
    /// `init --listen … --origin …`: a new directory.toml in the home. One that is there is never touched.
    fn write_configuration(&self, listen: Option<SocketAddr>, origin: Option<&str>) -> Result<()> {
        if listen.is_none() && origin.is_none() {
            return Ok(());
        }
        let home = self.home.clone().unwrap_or_else(default_home);
        let path = self.config.clone().unwrap_or_else(|| home.join("directory.toml"));
        let setting =
            |key: &str, value: Option<String>| value.map_or_else(String::new, |value| format!("{key} = {value:?}\n"));
        let mut text =
            setting("listen", listen.map(|listen| listen.to_string())) + &setting("origin", origin.map(str::to_owned));
        // Who has an https origin and listens to this machine alone has a proxy on it.
        if origin.is_some_and(|origin| origin.starts_with("https:")) && listen.is_none_or(|at| at.ip().is_loopback()) {
            text.push_str("behind_proxy = true\n");
        }
        // Before anything is made: a file that is refused would stand in the way of the next try.
        Config::parse(&Source::new(&path, &text))?;
        std::fs::create_dir_all(&home).map_err(Error::file("create", &home))?;
        let mut file = File::create_new(&path).map_err(Error::file("create (init never overwrites)", &path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(Error::file("write", &path))
    }
}

/// Writes to the standard output; a closed pipe ends the command without a word.
fn print(text: &str) -> Result<()> {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    Ok(())
}

fn init(loaded: &Loaded, json: bool) -> Result<()> {
    let home = loaded.home.folder();
    std::fs::create_dir_all(home).map_err(Error::file("create", home))?;
    let (identity, new) = Identity::load_or_create(&loaded.home.key())?;
    let origin = loaded.config.public_origin(*loaded.config.listen.get_ref());
    let upstream = loaded.config.upstream().map(|upstream| (upstream, identity.id()));
    let id = upstream.as_ref().map_or_else(|| identity.id(), |(upstream, _)| upstream.id);
    print(&render::init(&format!("{id}@{origin}"), upstream.as_ref(), home, new, json))
}

fn check(loaded: &Loaded, json: bool) -> Result<()> {
    tls::open(&loaded.config.tls)?;
    let store = &loaded.config.store;
    postgres::check_files(&store.password_file, &store.certificates)?;
    mirror::client::tls_config(&loaded.config.mirror.certificates)?;
    target::check_files(&loaded.config)?;
    let key = loaded.home.key();
    if key.exists() {
        Identity::load(&key)?;
    }
    print(&render::checked(loaded.source.file(), json))
}

fn status(loaded: &Loaded, json: bool) -> Result<()> {
    let Answer::Status(status) = client::ask(&loaded.home.socket(), &Ask::Status)? else {
        return Err(Error::PeerMalformed);
    };
    print(&render::status(&status, json))?;
    if status.health.status == "ok" { Ok(()) } else { Err(Error::LocalDegraded) }
}
