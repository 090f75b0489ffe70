//! The words of `openred module`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Module {
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
}
