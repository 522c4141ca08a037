//! `alhambra completions` and `mangen`, and `alhambra shell` in [`interactive`].

pub mod interactive;

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::{Failure, OrFail};
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

/// Flags of `alhambra mangen`.
#[derive(Debug, clap::Args)]
pub struct MangenArgs {
    /// The folder; made when there is none.
    #[arg(value_name = "DIR", default_value = "man")]
    dir: PathBuf,
}

/// Writes one page for each command.
pub fn mangen(args: &MangenArgs) -> Result<(), Failure> {
    let advice = "name a folder you may write to";
    let writing = format_args!("writing manual pages into {}", args.dir.display()).to_string();
    std::fs::create_dir_all(&args.dir).or_fail(&writing, advice)?;
    clap_mangen::generate_to(crate::Cli::command(), &args.dir).or_fail(&writing, advice)?;
    print_raw(format!("manual pages are in {}: man -l {}/alhambra.1\n", args.dir.display(), args.dir.display()))
}
