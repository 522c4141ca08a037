use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Command, FromArgMatches};

use super::*;

fn args(line: &[&str]) -> Result<ServeArgs, clap::Error> {
    let command = ServeArgs::augment_args(Command::new("serve").no_binary_name(true));
    ServeArgs::from_arg_matches(&command.try_get_matches_from(line)?)
}

fn resolve(line: &[&str], environment: &[(&str, &str)], file: &str) -> Result<Config, ConfigError> {
    let environment: BTreeMap<&str, &str> = environment.iter().copied().collect();
    Config::resolve(
        &args(line).unwrap(),
        |name| environment.get(name).map(|v| (*v).to_owned()),
        |_| Ok(file.to_owned()),
    )
}

fn port_and_source(line: &[&str], environment: &[(&str, &str)], file: &str) -> (u16, Source) {
    let config = resolve(line, environment, file).unwrap();
    let origin = config.origins().into_iter().find(|origin| origin.key == "port").unwrap();
    assert_eq!(origin.value, config.port.to_string());
    (config.port, origin.source)
}

#[test]
fn flag_before_our_variable_before_theirs_before_file_before_default() {
    let ours = ("ALHAMBRA_PORT", "2");
    let theirs = ("IMMUDB_PORT", "3");
    let (flag, config) = (["--port", "1", "--config", "f"], ["--config", "f"]);
    let file = "port = 4";
    assert_eq!(port_and_source(&flag, &[ours, theirs], file), (1, Source::Flag));
    assert_eq!(port_and_source(&config, &[ours, theirs], file), (2, Source::Environment("ALHAMBRA_PORT".into())));
    assert_eq!(port_and_source(&config, &[theirs], file), (3, Source::Environment("IMMUDB_PORT".into())));
    assert_eq!(port_and_source(&config, &[], file), (4, Source::File("f".into())));
    assert_eq!(port_and_source(&[], &[("ALHAMBRA_CONFIG", "g")], file), (4, Source::File("g".into())));
    assert_eq!(port_and_source(&config, &[], ""), (3322, Source::Default));
    assert_eq!(port_and_source(&[], &[], file), (3322, Source::Default));
}

#[test]
fn their_variables_count_only_where_the_meaning_is_the_same() {
    let config = resolve(&[], &[("IMMUDB_PEER_PORT", "7"), ("IMMUDB_SIGNINGKEY", "k.pem")], "").unwrap();
    assert_eq!(config.peer_port, 3323);
    assert_eq!(config.signing_key, Some("k.pem".into()));
    assert_eq!(resolve(&[], &[("IMMUDB_LOGFORMAT", "json")], "").unwrap().log_format, LogFormat::Json);
}

#[test]
fn unknown_names_are_errors() {
    assert_eq!(args(&["--prot", "1"]).unwrap_err().kind(), clap::error::ErrorKind::UnknownArgument);
    let error = resolve(&["--config", "f"], &[], "prot = 1").unwrap_err();
    assert!(matches!(&error, ConfigError::UnknownKey { key, .. } if key == "prot"), "{error}");
    assert!(matches!(resolve(&["--config", "f"], &[], "port 1"), Err(ConfigError::FileMalformed { .. })));
    let missing =
        Config::resolve(&args(&["--config", "f"]).unwrap(), |_| None, |_| Err(std::io::ErrorKind::NotFound.into()));
    assert!(matches!(missing, Err(ConfigError::FileUnreadable { .. })));
}

#[test]
fn values_out_of_range_name_setting_origin_and_range() {
    for (line, file) in [
        (vec!["--port", "65536"], ""),
        (vec!["--port", "x"], ""),
        (vec!["--request-timeout", "99ms"], ""),
        (vec!["--request-timeout", "10"], ""),
        (vec!["--request-timeout", "10m1s"], ""),
        (vec!["--bootstrap-expect", "0"], ""),
        (vec!["--max-sessions", "0"], ""),
        (vec!["--peers", "127.0.0.1"], ""),
        (vec!["--admin-password", ""], ""),
        (vec!["--admin-password", "enc:?"], ""),
        (vec!["--metrics-server=maybe"], ""),
        (vec!["--config", "f"], "log-format = \"xml\""),
        (vec!["--config", "f"], "port = -1"),
    ] {
        let error = resolve(&line, &[], file).unwrap_err();
        assert!(matches!(error, ConfigError::Invalid { .. }), "{line:?} {file}: {error}");
    }
    let error = resolve(&[], &[("ALHAMBRA_PORT", "no")], "").unwrap_err().to_string();
    assert_eq!(error, "port = \"no\" (from environment ALHAMBRA_PORT) is not possible: expected a port, 0 to 65535");
    let long = "x".repeat(73);
    let error = resolve(&["--admin-password", &long], &[], "").unwrap_err().to_string();
    assert!(!error.contains(&long) && error.contains("***"), "{error}");
}

#[test]
fn switches_may_stand_alone_and_lists_may_be_arrays() {
    let peers = "127.0.0.1:1,localhost:2,[::1]:3";
    let config = resolve(&["--insecure-peers", "--bootstrap-expect", "2", "--peers", peers], &[], "").unwrap();
    assert_eq!(config.peers, ["127.0.0.1:1", "localhost:2", "[::1]:3"]);
    assert!(!resolve(&["--metrics-server=false"], &[], "").unwrap().metrics_server);
    let file = "peers = ['127.0.0.1:1', '127.0.0.1:2']\nbootstrap-expect = 2\ninsecure-peers = true";
    assert_eq!(resolve(&["--config", "f"], &[], file).unwrap().peers, ["127.0.0.1:1", "127.0.0.1:2"]);
}

#[test]
fn several_peers_need_tls_or_one_machine() {
    let two = ["--bootstrap-expect", "2", "--peers", "127.0.0.1:1,10.0.0.1:2"];
    assert!(matches!(resolve(&two, &[], ""), Err(ConfigError::PeerTlsMissing)));
    let error = resolve(&two, &[("ALHAMBRA_INSECURE_PEERS", "true")], "").unwrap_err();
    assert!(matches!(&error, ConfigError::InsecurePeer { peer } if peer == "10.0.0.1:2"), "{error}");
    assert!(matches!(resolve(&["--bootstrap-expect", "3"], &[], ""), Err(ConfigError::PeersMissing { expect: 3 })));
    for expect in ["1", "2", "5"] {
        let line = ["--insecure-peers", "--bootstrap-expect", expect, "--peers", "[::1]:1,[::1]:2,[::1]:3,[::1]:4"];
        assert!(matches!(resolve(&line, &[], ""), Err(ConfigError::BootstrapExpect { .. })), "{expect}");
    }
}

#[test]
fn only_a_password_that_is_given_is_forced() {
    assert!(!resolve(&[], &[], "").unwrap().force_admin_password);
    assert!(resolve(&["--force-admin-password"], &[], "").unwrap_err().to_string().contains("add --admin-password"));
    let config = resolve(&["--force-admin-password", "--admin-password", "pass"], &[], "").unwrap();
    assert!(config.force_admin_password);
}

#[test]
fn maintenance_needs_authentication_off() {
    let defaults = Config::default();
    assert!(defaults.auth && !defaults.devmode && !defaults.maintenance);
    for line in [["--maintenance", "--auth"], ["--maintenance=true", "--auth=true"], ["--maintenance", "--devmode"]] {
        let error = resolve(&line, &[], "").unwrap_err();
        assert!(matches!(error, ConfigError::MaintenanceWithAuth), "{line:?}: {error}");
        assert!(error.to_string().contains("--auth=false"), "{error}");
    }
    let file = "maintenance = true";
    assert!(matches!(resolve(&["--config", "f"], &[], file), Err(ConfigError::MaintenanceWithAuth)));
    assert!(matches!(resolve(&["--auth=maybe"], &[], ""), Err(ConfigError::Invalid { key: "auth", .. })));

    let config = resolve(&["--maintenance", "-s=false"], &[], "").unwrap();
    assert!(config.maintenance && !config.auth && !config.devmode);
    let config = resolve(&["--config", "f"], &[("IMMUDB_AUTH", "false"), ("IMMUDB_DEVMODE", "true")], file).unwrap();
    assert!(config.maintenance && !config.auth && config.devmode);
    let config = resolve(&["--config", "f"], &[], "auth = false").unwrap();
    assert!(!config.maintenance && !config.auth);
    // Switched on, dev mode lays nothing open.
    assert!(resolve(&["--devmode"], &[], "").unwrap().auth);
}

#[test]
fn times_are_written_with_units_and_read_back() {
    for (text, ms) in
        [("0", 0), ("0s", 0), ("1h30m", 5_400_000), ("2m0s", 120_000), ("1s500ms", 1500), ("24h", 86_400_000)]
    {
        let time = Duration::parse(text).unwrap();
        assert_eq!(time, Duration::from_millis(ms), "{text}");
        assert_eq!(Duration::parse(&time.show()), Some(time), "{}", time.show());
    }
    for text in ["", "s", "10", "1d", "1 s", "-1s", "1.5s", "1s5", "18446744073709551615h"] {
        assert_eq!(Duration::parse(text), None, "{text:?}");
    }
}

#[test]
fn the_table_is_complete_and_every_default_reads_back() {
    let keys: BTreeSet<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(keys.len(), SETTINGS.len());
    let defaults = Config::default().origins();
    assert_eq!(defaults.len(), SETTINGS.len());
    for (setting, origin) in SETTINGS.iter().zip(&defaults) {
        assert_eq!((setting.key, setting.default()), (origin.key, origin.value.clone()));
        if setting.default().is_empty() {
            continue;
        }
        let line = format!("--{}={}", setting.key, setting.default());
        let again = resolve(&[&line], &[], "").unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(again.origins().iter().find(|o| o.key == setting.key).unwrap().value, setting.default());
    }
    ServeArgs::augment_args(Command::new("serve")).debug_assert();
}

#[test]
fn secrets_are_not_shown() {
    let config = resolve(&["--admin-password", "enc:cGFzcw=="], &[], "").unwrap();
    assert_eq!(config.admin_password.as_ref().map(Secret::reveal), Some("pass"));
    assert!(!format!("{config:?}").contains("pass\""));
    assert_eq!(config.origins().into_iter().find(|o| o.key == "admin-password").unwrap().value, "***");
}
