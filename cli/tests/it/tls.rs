//! The commands over encrypted connections, against a node that made its own certificate.

use std::process::{Output, Stdio};

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
