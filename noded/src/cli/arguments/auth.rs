//! The words of `openred auth`.

use clap::Subcommand;

use super::PassphraseSource;

#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Users of the API: add, list, remove, password
    #[command(subcommand)]
    User(User),
    /// Their second factor
    #[command(subcommand)]
    Totp(Totp),
    /// Show who is logged in, or end sessions
    Sessions {
        /// End this one
        #[arg(long, value_name = "ID", conflicts_with = "end_all")]
        end: Option<String>,
        /// End all of them
        #[arg(long)]
        end_all: bool,
    },
    /// Let a user try again who was locked out
    Unlock {
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Have a linked peer prove now that it holds its key
    Challenge {
        #[arg(value_name = "DID")]
        peer: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum User {
    /// Add a user; its password is asked for, or read where the options say
    Add {
        #[arg(value_name = "NAME")]
        name: String,
        /// May look, and change nothing
        #[arg(long)]
        viewer: bool,
        #[command(flatten)]
        password: PassphraseSource,
    },
    /// List the users
    List,
    /// Remove a user and end its sessions
    Remove {
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Set another password and end the user's sessions
    Password {
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        password: PassphraseSource,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Totp {
    /// Make another secret for the user's authenticator and end its sessions
    Enrol {
        #[arg(value_name = "NAME")]
        name: String,
    },
}
