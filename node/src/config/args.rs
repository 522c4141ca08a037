//! The flags of `serve`, made from the table of settings so that the two cannot differ.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::SETTINGS;

const CONFIG: &str = "config";

/// The settings that stand on the command line. `#[command(flatten)]` it; turn it into a [`super::Config`] with
/// [`super::Config::load`], which also checks the values.
#[derive(Clone, Debug, Default)]
pub struct ServeArgs {
    values: BTreeMap<&'static str, String>,
    config_file: Option<PathBuf>,
}

impl ServeArgs {
    /// The file that `--config` names.
    pub fn config_file(&self) -> Option<&Path> {
        self.config_file.as_deref()
    }

    /// What stands after the flag of this setting.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file with settings, below flags and environment [env: ALHAMBRA_CONFIG]");
        SETTINGS.iter().fold(command.arg(config), |command, setting| {
            let (default, variables) = (setting.default(), setting.variables().join(", "));
            let default = if default.is_empty() { "none" } else { &default };
            let help = setting.help.trim();
            let help = format!("{help} Expects {} [default: {default}] [env: {variables}]", setting.expects);
            let mut arg = Arg::new(setting.key).long(setting.key).action(ArgAction::Set).help(help);
            if let Some(alias) = setting.alias {
                arg = arg.alias(alias);
            }
            if let Some(short) = setting.short {
                arg = arg.short(short);
            }
            arg = if setting.switch {
                arg.value_name("BOOL").num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                arg.value_name("VALUE").allow_hyphen_values(true)
            };
            command.arg(arg)
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut out = Self::default();
        out.update_from_arg_matches(matches)?;
        Ok(out)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            if let Some(value) = matches.get_one::<String>(setting.key) {
                self.values.insert(setting.key, value.clone());
            }
        }
        if let Some(path) = matches.get_one::<PathBuf>(CONFIG) {
            self.config_file = Some(path.clone());
        }
        Ok(())
    }
}
