use super::super::manifest::parse;
use super::super::testing::chain;
use super::*;

#[test]
fn all_that_a_run_needs_is_kept() {
    let digest = Digest::of(b"");
    let text = format!(
        r#"{{"architecture":"amd64","os":"linux","variant":"v2","created":"2024-01-01T00:00:00Z","history":[{{}}],
        "config":{{"User":"alice:users","Env":["A=1","B"],"Entrypoint":["/bin/sh","-c"],"Cmd":["x"],"WorkingDir":"/w",
        "StopSignal":"SIGINT","ExposedPorts":{{"80/tcp":{{}},"53/udp":{{}}}},"Volumes":{{"/v":{{}}}},"Labels":{{"k":"v"}},
        "Healthcheck":{{"Test":[]}}}},"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#
    );
    let config: ImageConfig = parse(text.as_bytes(), "it").unwrap();
    assert_eq!(config.platform().unwrap().to_string(), "linux/amd64/v2");
    assert_eq!(config.rootfs.diff_ids, [digest]);
    let run = config.config;
    assert_eq!(
        (run.user.as_str(), run.working_dir.as_str(), run.stop_signal.as_str()),
        ("alice:users", "/w", "SIGINT")
    );
    assert_eq!((run.env.len(), run.entrypoint.len(), run.cmd.as_slice()), (2, 2, &["x".to_owned()][..]));
    assert_eq!((run.exposed_ports.len(), run.volumes.as_slice()), (2, &["/v".to_owned()][..]));
    assert_eq!(run.labels["k"], "v");
    let again: RunConfig = serde_json::from_slice(&serde_json::to_vec(&run).unwrap()).unwrap();
    assert_eq!(again, run);
}

#[test]
fn null_and_absent_are_the_same_and_one_word_is_a_list() {
    let text = r#"{"architecture":null,"os":null,"created":null,"config":{"User":null,"Env":null,"Entrypoint":"/init",
        "Cmd":null,"ExposedPorts":null,"Labels":null},"rootfs":{"diff_ids":null}}"#;
    let config: ImageConfig = parse(text.as_bytes(), "it").unwrap();
    assert_eq!(config.config, RunConfig { entrypoint: vec!["/init".into()], ..RunConfig::default() });
    assert_eq!(config.platform(), None);
    for text in [r#"{"config":null,"rootfs":{}}"#, r#"{"rootfs":null,"history":null}"#, "{}", "null"] {
        let bare: ImageConfig = parse(text.as_bytes(), "it").unwrap();
        assert_eq!((bare.config, bare.rootfs.diff_ids.len()), (RunConfig::default(), 0), "{text}");
    }
    let inner = br#"{"config":{"Env":[null],"Labels":{"k":null},"Volumes":{"/v":null},"Cmd":["a",null]}}"#;
    let inner = parse::<ImageConfig>(inner, "it").unwrap().config;
    assert_eq!(
        (inner.env, inner.labels["k"].as_str(), inner.cmd),
        (vec![String::new()], "", vec!["a".into(), String::new()])
    );
    assert_eq!(inner.volumes, ["/v"]);
}

#[test]
fn counts_that_differ_and_wrong_types_are_refused() {
    let config: ImageConfig = parse(br#"{"rootfs":{}}"#, "it").unwrap();
    let message = config.check_layers(3, "it").unwrap_err().to_string();
    assert_eq!(message, "it has 3 layers, and its configuration names 0");
    for text in [
        &br#"{"rootfs":{"diff_ids":["sha256:x"]}}"#[..],
        br#"{"rootfs":{},"config":{"Env":"A=B"}}"#,
        br#"{"rootfs":{},"config":{"Cmd":[1]}}"#,
        br#"{"rootfs":{"diff_ids":[null]}}"#,
        br#"{"rootfs":[]}"#,
        format!(r#"{{"os":5,"{}":1}}"#, "x".repeat(10_000)).as_bytes(),
        format!(r#"{{"rootfs":"{}"}}"#, "\\u001b".repeat(10_000)).as_bytes(),
        br#"[]"#,
        b"",
        b"\xff",
    ] {
        let message = chain(&parse::<ImageConfig>(text, "it").unwrap_err());
        assert!(message.starts_with("it is malformed: ") && !message.contains(['\n', '\u{1b}']), "{message}");
        assert!(message.len() < 300, "{message}");
    }
    let deep = "[".repeat(1 << 20);
    parse::<ImageConfig>(deep.as_bytes(), "it").unwrap_err();
}
