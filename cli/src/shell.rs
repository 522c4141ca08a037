//! `alhambra completions`, and `alhambra shell` in [`interactive`].

pub mod interactive;

use clap::CommandFactory;
use clap_complete::Shell;

/// Flags of `alhambra completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// Which shell.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

/// Prints the completions.
pub fn completions(args: &CompletionsArgs) {
    let shell = match args.shell.as_str() {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    clap_complete::generate(shell, &mut crate::Cli::command(), "alhambra", &mut std::io::stdout());
}
