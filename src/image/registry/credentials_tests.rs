use super::*;
use std::fs;

fn auth(text: &str) -> String {
    BASE64_STANDARD.encode(text)
}

fn password(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials::Password { user: user.into(), password: password.into() })
}

#[track_caller]
fn look(json: &str, name: &str) -> Result<Option<Credentials>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    fs::write(&path, json).unwrap();
    let variable = |name: &str| (name == "REGISTRY_AUTH_FILE").then(|| path.clone().into());
    find(&name.parse().unwrap(), variable).map_err(|error| error.to_string())
}

#[test]
fn keys_fit_as_a_whole_and_the_longest_counts() {
    let json = format!(
        r#"{{"auths": {{
            "https://index.docker.io/v1/": {{"auth": "{}"}},
            "a.example": {{"auth": "{}"}},
            "a.example/team": {{"auth": "{}"}},
            "a.example/team/app": {{"username": "app", "password": "4"}},
            "https://b.example/v2/": {{"auth": "{}"}},
            "c.example": {{}},
            "d.example": {{"auth": "{}", "identitytoken": "t"}},
            "e.example": {{"registrytoken": "r"}}
        }}, "other": 1}}"#,
        auth("hub:1:2"),
        auth("a:2"),
        auth("team:3"),
        auth("b:5\0\0"),
        auth("<token>:"),
    );
    for (name, expected) in [
        ("busybox", password("hub", "1:2")),
        ("a.example/x", password("a", "2")),
        ("a.example/team/x", password("team", "3")),
        ("a.example/team/app", password("app", "4")),
        ("a.example/team/app2", password("team", "3")),
        ("a.example/team2/app", password("a", "2")),
        ("b.example/x", password("b", "5")),
        ("c.example/x", None),
        ("d.example/x", Some(Credentials::Identity("t".into()))),
        ("e.example/x", Some(Credentials::Token("r".into()))),
        ("a.example:5000/x", None),
        ("x.a.example/x", None),
        ("a.example.evil/x", None),
    ] {
        assert_eq!(look(&json, name), Ok(expected), "{name}");
    }
    assert!(!format!("{:?}", password("user", "secret")).contains("secret"));
}

#[test]
fn null_in_a_file_of_credentials_is_nothing() {
    for json in [
        "null",
        r#"{"auths": null, "credsStore": null, "credHelpers": null}"#,
        r#"{"auths": {"a.example": null}}"#,
        r#"{"auths": {"a.example": {"auth": null, "username": null, "password": null, "identitytoken": null}}}"#,
        r#"{"credHelpers": {"a.example": null}, "credsStore": "bothy-test-that-is-not-there"}"#,
    ] {
        assert_eq!(look(json, "a.example/x"), Ok(None), "{json}");
    }
    let half =
        format!(r#"{{"auths": {{"a.example": {{"auth": "{}", "identitytoken": null}}}}}}"#, auth("a:b"));
    assert_eq!(look(&half, "a.example/x"), Ok(password("a", "b")));
}

#[test]
fn what_is_no_file_of_credentials_is_named_without_its_secrets() {
    for (json, part) in [
        (r#"{"auths": {"a.example": "secret"}}"#, "not the JSON that it should be, at line 1"),
        (r#"{"auths": {"a.example": {"auth": "secret!"}}}"#, "not base64"),
        (&format!(r#"{{"auths": {{"a.example": {{"auth": "{}"}}}}}}"#, auth("secret")), "not USER:PASSWORD"),
        (r#"{"credHelpers": {"a.example": "../secret"}}"#, "no name of a helper"),
    ] {
        let message = look(json, "a.example/x").unwrap_err();
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("secret!") && !message.contains('\n'), "{message}");
    }
    assert_eq!(look(" \n", "a.example/x"), Ok(None));
    assert_eq!(look("{}", "a.example/x"), Ok(None));
}

#[test]
fn the_first_file_that_has_something_counts() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, user: &str, host: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(
            path,
            format!(r#"{{"auths": {{"{host}": {{"auth": "{}"}}}}}}"#, auth(&format!("{user}:p"))),
        )
        .unwrap();
    };
    let look = |more: &[(&str, &str)]| {
        let mut variables = vec![("HOME", "home"), ("XDG_RUNTIME_DIR", "run")];
        variables.extend(more);
        let variable = |name: &str| {
            let (_, path) = variables.iter().rev().find(|(key, _)| *key == name)?;
            Some(dir.path().join(path).into())
        };
        match find(&"a.example/x".parse().unwrap(), variable).unwrap() {
            Some(Credentials::Password { user, .. }) => user,
            _ => "nobody".into(),
        }
    };
    assert_eq!(look(&[]), "nobody");
    write("home/.docker/config.json", "docker", "a.example");
    assert_eq!(look(&[]), "docker");
    write("home/.config/containers/auth.json", "config", "a.example");
    assert_eq!(look(&[]), "config");
    write("run/containers/auth.json", "other", "b.example");
    assert_eq!(look(&[]), "config");
    write("run/containers/auth.json", "run", "a.example");
    assert_eq!(look(&[]), "run");
    write("mine", "mine", "a.example");
    assert_eq!(look(&[("REGISTRY_AUTH_FILE", "mine")]), "mine");
    assert_eq!(look(&[("REGISTRY_AUTH_FILE", "missing")]), "nobody");
    write("d/config.json", "moved", "a.example");
    fs::remove_dir_all(dir.path().join("run")).unwrap();
    fs::remove_dir_all(dir.path().join("home/.config")).unwrap();
    assert_eq!(look(&[("DOCKER_CONFIG", "d")]), "moved");
}

#[test]
fn a_helper_that_is_not_there_only_matters_if_it_is_this_registry_s() {
    let missing = "bothy-test-that-is-not-there";
    let message = look(&format!(r#"{{"credHelpers": {{"a.example": "{missing}"}}}}"#), "a.example/x");
    assert!(message.unwrap_err().contains(&format!("docker-credential-{missing} fails: No such file")));
    let store =
        format!(r#"{{"credsStore": "{missing}", "auths": {{"a.example": {{"auth": "{}"}}}}}}"#, auth("a:b"));
    assert_eq!(look(&store, "a.example/x"), Ok(password("a", "b")));
    let other = format!(r#"{{"credHelpers": {{"b.example": "{missing}"}}}}"#);
    assert_eq!(look(&other, "a.example/x"), Ok(None));
}
