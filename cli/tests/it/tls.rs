//! The commands over encrypted connections, against a node that made its own certificate.

use std::process::{Output, Stdio};

use crate::first_password;
use crate::support::{Serve, alhambra, free_base_port, run, stderr, stdout, wait_until};

#[test]
fn commands_reach_a_node_with_a_certificate_of_its_own_when_they_trust_it() {
    let home = tempfile::tempdir().unwrap();
    let base = free_base_port(1);
    let [port, peer, metrics, web] = [base, base + 1, base + 6175, base + 4758].map(|port| port.to_string());
    let data = home.path().join("data");
    let mut command =
        alhambra(&["serve", "--auto-cert", "--address", "127.0.0.1", "--port", &port, "--peer-port", &peer]);
    command.args(["--metrics-server-port", &metrics, "--web-server-port", &web, "--dir"]).arg(&data);
    command.env("ALHAMBRA_ADMIN_PASSWORD", "immudb").stdin(Stdio::null()).stderr(Stdio::null());
    let _serve = Serve(command.spawn().unwrap());

    let endpoint = format!("127.0.0.1:{port}");
    let certificate = data.join("tls").join("certificate.pem");
    let certificate = certificate.to_str().unwrap();
    let call = |arguments: &[&str]| -> Output {
        let mut command = alhambra(arguments);
        command.env("ALHAMBRA_ENDPOINT", &endpoint).env("ALHAMBRA_STATE_DIR", home.path().join("states"));
        run(&mut command)
    };
    wait_until("the node to serve", || {
        let set = call(&["set", "k", "v", "--cacert", certificate]);
        set.status.success().then_some(())
    });
    let status = call(&["status", "--cacert", certificate]);
    assert!(status.status.success() && stdout(&status).contains("leader"), "{}{}", stdout(&status), stderr(&status));
    let got = call(&["get", "k", "--output", "raw", "--cacert", certificate]);
    assert_eq!(stdout(&got), "v", "{}", stderr(&got));

    // Source and target of an import, both encrypted.
    let import = ["import", "--from", &endpoint, "--from-database", "defaultdb", "--from-password", "immudb"];
    let to = ["--database", "moved", "--cacert", certificate];
    let moved = call(&[&import[..], &["--from-cacert", certificate], &to].concat());
    assert!(moved.status.success(), "{}", stderr(&moved));
    let got = call(&["get", "k", "--output", "raw", "--database", "moved", "--cacert", certificate]);
    assert_eq!(stdout(&got), "v", "{}", stderr(&got));
    for (flags, says) in [(&["--from-tls"][..], "certificate"), (&[], "the source does not let this command in")] {
        let refused = call(&[&import[..], flags, &to].concat());
        assert_eq!(refused.status.code(), Some(5), "{flags:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(says), "{flags:?}: {}", stderr(&refused));
    }

    for (flags, code) in [
        // Nobody whom this system trusts vouches for it.
        (&["--tls"][..], 1),
        (&["--cacert", certificate, "--servername", "another.example"], 1),
        // A plain connection gets no answer.
        (&[], 5),
        (&["--cacert", "/nowhere"], 1),
        (&["--certificate", certificate], 2),
    ] {
        let refused = call(&[&["get", "k"], flags].concat());
        assert_eq!(refused.status.code(), Some(code), "{flags:?}: {}", stderr(&refused));
    }
}

/// The states of a server that signs are refused when the signature is another's, or missing.
#[tokio::test(flavor = "multi_thread")]
async fn commands_refuse_states_that_the_server_did_not_sign() {
    let home = tempfile::tempdir().unwrap();
    let testdata = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/testdata");
    let [key, public] = ["signing_key.pem", "signing_key.pub.pem"].map(|name| format!("{testdata}/{name}"));
    let base = free_base_port(1);
    let given = ["--admin-password", "immudb", "--signingKey", &key];
    let signs = first_password::Serve::start(&home.path().join("signs"), base, &given);
    let other = free_base_port(1);
    let plain = first_password::Serve::start(&home.path().join("plain"), other, &given[..2]);
    signs.serves("immudb").await;
    plain.serves("immudb").await;
    let call = |port: u16, arguments: &[&str]| -> Output {
        let mut command = alhambra(arguments);
        command.env("ALHAMBRA_ENDPOINT", format!("127.0.0.1:{port}"));
        run(command.env("ALHAMBRA_STATE_DIR", home.path().join("states")))
    };
    assert!(call(other, &["set", "k", "v"]).status.success(), "it is not asked for");
    let flags = ["--server-signing-pub-key", &public];
    for command in [&["set", "k", "v"][..], &["get", "k"], &["scan"], &["tx", "1"], &["verify", "k"], &["current"]] {
        let signed = call(base, &[command, &flags].concat());
        assert!(signed.status.success(), "{command:?}: {}", stderr(&signed));
        let unsigned = call(other, &[command, &flags].concat());
        assert_eq!(unsigned.status.code(), Some(4), "{command:?}: {}", stderr(&unsigned));
    }
    let verified = call(base, &[&["verify"][..], &flags].concat());
    assert!(stdout(&verified).contains("proven: the state is signed by the server's key"), "{}", stdout(&verified));
    let unsigned = call(other, &[&["verify"][..], &flags].concat());
    assert_eq!(unsigned.status.code(), Some(4), "{}", stderr(&unsigned));
    for (file, says) in [(key.as_str(), "BEGIN PUBLIC KEY"), ("/nowhere", "reading /nowhere")] {
        let refused = call(base, &["get", "k", "--server-signing-pub-key", file]);
        assert!(!refused.status.success() && stderr(&refused).contains(says), "{file}: {}", stderr(&refused));
    }
}
