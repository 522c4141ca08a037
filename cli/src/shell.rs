//! `alhambra completions`, and `alhambra shell` in [`interactive`].

pub mod interactive;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output::print_raw;

/// Flags of `alhambra completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// Which shell.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// Prints the completions.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let shell = match args.shell.as_str() {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    // Into memory first: the library panics when who reads it goes away.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut crate::Cli::command(), "alhambra", &mut script);
    print_raw(script)
}
