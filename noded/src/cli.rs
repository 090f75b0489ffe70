//! `openred`: the operator's command line. Each command parses its words, asks the daemon over its socket or works on files
//! of the node's home, prints an answer for people or programs, and ends with one of the documented exit codes.
//!
//! It holds no key and speaks to no peer; passphrases go to the caged unsealer and nowhere else.

mod arguments;
mod audit;
mod auth;
mod author;
mod backup;
mod client;
mod configuration;
mod documents;
mod exit;
mod files;
mod hooks;
mod init;
mod key;
mod landing;
mod links;
mod logs;
mod messages;
mod methods;
mod module;
mod monitor;
mod output;
mod packages;
mod passphrase;
mod peers;
mod proofs;
mod shares;
mod status;
mod succession;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::home::{HOME_BYTES, Home};
use crate::supervisor;

use arguments::{Arguments, Command, Watching};
pub(crate) use exit::{Exit, Failure, one_line};
use output::Output;
pub(crate) use passphrase::Passphrase;

/// What every command works with.
#[derive(Clone)]
pub(crate) struct Invocation {
    pub(crate) home: Home,
    pub(crate) config: PathBuf,
    /// `--set` overrides: dotted key and text.
    pub(crate) overrides: Vec<(String, String)>,
    pub(crate) output: Output,
}

/// The whole program behind `openred`.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; clap knows which stream and code belong to which.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let output = Output::new(arguments.json);
    let ended = invocation(&arguments, output).and_then(|invocation| dispatch(&invocation, arguments.command));
    let exit = ended.unwrap_or_else(|failure| {
        output.failure(&failure);
        failure.exit
    });
    ExitCode::from(exit as u8)
}

fn invocation(arguments: &Arguments, output: Output) -> Result<Invocation, Failure> {
    let root = nix::unistd::geteuid().is_root();
    let place =
        arguments.home.clone().or_else(|| Home::default_path(root, |name| std::env::var_os(name).map(Into::into)));
    let place = place.ok_or_else(|| Failure::usage("no home directory is known", "name one with --home"))?;
    let place = std::path::absolute(&place).map_err(|error| Failure::local(place.display(), &error))?;
    if place.as_os_str().len() > HOME_BYTES {
        let what = format!("{}: longer than {HOME_BYTES} bytes, so its sockets would have no address", place.display());
        return Err(Failure::usage(what, "choose a shorter --home"));
    }
    let home = Home::new(place);
    let config = arguments.config.clone().unwrap_or_else(|| home.config());
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err(Failure::usage(format!("--set {text}: no `=` in it"), "write --set KEY=VALUE")),
    };
    let overrides = arguments.set.iter().map(pair).collect::<Result<_, _>>()?;
    Ok(Invocation { home, config, overrides, output })
}

fn dispatch(invocation: &Invocation, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Init(options) => init::init(invocation, options),
        Command::Up(options) => {
            options.with_parent.map_or(Ok(()), supervisor::end_with)?;
            // Before its configuration is read, which may be a part of it.
            supervisor::finish_pending(&invocation.home)?;
            let resolved = configuration::resolved(invocation)?;
            let (home, passphrase) = (invocation.home.clone(), Passphrase::new(&options.secret)?);
            let again = invocation.clone();
            supervisor::up(&home, resolved.config, passphrase, move || configuration::reread(&again))
        }
        Command::Status(options) if options.watch => {
            let watching = Watching { every: options.every, count: options.count };
            client::block_on(watch::status(invocation, &watching))
        }
        Command::Status(_) => client::block_on(status::status(invocation)),
        Command::Top(options) => client::block_on(watch::top(invocation, &options)),
        Command::Doctor => client::block_on(status::doctor(invocation)),
        Command::Key(command) => key::key(invocation, command),
        Command::Backup(command) => backup::backup(invocation, command),
        Command::Link(command) => client::block_on(links::link(invocation, command)),
        Command::Module(command) => packages::module(invocation, command),
        Command::Method(command) => client::block_on(methods::method(invocation, command)),
        Command::Hooks => client::block_on(hooks::hooks(invocation)),
        Command::Peers(command) => client::block_on(peers::peers(invocation, command)),
        Command::Send(options) => client::block_on(messages::send(invocation, options)),
        Command::Inbox(options) => client::block_on(messages::inbox(invocation, options)),
        Command::Sent(options) => client::block_on(messages::sent(invocation, options)),
        Command::Conversations(options) => client::block_on(messages::conversations(invocation, options)),
        Command::Share(options) => client::block_on(files::share(invocation, options)),
        Command::Fetch(options) => client::block_on(files::fetch(invocation, options)),
        Command::Files(command) => client::block_on(shares::files(invocation, command)),
        Command::Auth(command) => client::block_on(auth::auth(invocation, command)),
        Command::Monitor(command) => client::block_on(monitor::monitor(invocation, command)),
        Command::Audit(command) => client::block_on(audit::audit(invocation, command)),
        Command::Check { files } => configuration::check(invocation, files),
        Command::Config(arguments::Config::Show { origin }) => configuration::show(invocation, origin),
        Command::Version => documents::version(invocation),
        Command::Completions { shell } => documents::completions(shell),
        Command::Man { directory } => documents::man(invocation, &directory),
    }
}
