use std::collections::BTreeMap;

use super::*;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Everything {
    flag: bool,
    number: u64,
    negative: i32,
    fraction: f64,
    text: String,
    list: Vec<String>,
    nested: Vec<Vec<u8>>,
    object: BTreeMap<String, String>,
    inner: Inner,
    inners: Vec<Inner>,
    option: Option<Inner>,
    #[serde(deserialize_with = "words")]
    words: Vec<String>,
    #[serde(deserialize_with = "keys")]
    keys: Vec<String>,
    newtype: Newtype,
    field: Field<Vec<u64>>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Inner {
    text: String,
    number: i64,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
struct Newtype(String);

#[track_caller]
fn parse(text: &str) -> Everything {
    from_slice(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

const FIELDS: [&str; 14] = [
    "flag", "number", "negative", "fraction", "text", "list", "nested", "object", "inner", "inners",
    "option", "words", "keys", "newtype",
];

#[test]
fn null_is_the_zero_value_of_every_type_and_so_is_an_absent_field() {
    for field in FIELDS {
        assert_eq!(parse(&format!(r#"{{"{field}": null}}"#)), Everything::default(), "{field}");
    }
    let all = FIELDS.map(|field| format!(r#""{field}": null"#)).join(", ");
    assert_eq!(parse(&format!("{{{all}, \"other\": null}}")), Everything::default());
    assert_eq!(parse("{}"), Everything::default());
    assert_eq!(parse("null"), Everything::default());
    assert_eq!(from_slice::<Vec<Inner>>(b" null\n").unwrap(), []);
}

#[test]
fn nulls_are_zero_values_at_every_depth() {
    let inner = Inner::default;
    assert_eq!(parse(r#"{"list": [null, "a"]}"#).list, ["", "a"]);
    assert_eq!(parse(r#"{"nested": [null, [null, 1]]}"#).nested, [vec![], vec![0, 1]]);
    assert_eq!(parse(r#"{"object": {"a": null}}"#).object["a"], "");
    assert_eq!(parse(r#"{"inner": {"text": null, "number": null}}"#).inner, inner());
    assert_eq!(parse(r#"{"inners": [null, {"text": null}]}"#).inners, [inner(), inner()]);
    assert_eq!(parse(r#"{"option": {"text": null}}"#).option, Some(inner()));
    assert_eq!(parse(r#"{"words": [null, "a"]}"#).words, ["", "a"]);
    assert_eq!(parse(r#"{"keys": {"a": null, "b": {}}}"#).keys, ["a", "b"]);
}

#[test]
fn values_are_kept_and_a_field_tells_null_from_nothing() {
    let text = r#"{"flag": true, "number": 18446744073709551615, "negative": -5, "fraction": 0.5, "text": "t\u00e9",
        "list": ["a"], "nested": [[1, 2]], "object": {"k": "v"}, "inner": {"text": "x", "number": -7, "other": [null]},
        "words": "one", "newtype": "n", "field": [3]}"#;
    let all = parse(text);
    assert_eq!((all.flag, all.number, all.negative, all.fraction), (true, u64::MAX, -5, 0.5));
    assert_eq!(
        (all.text.as_str(), &all.list[..], &all.nested[..]),
        ("t\u{e9}", &["a".into()][..], &[vec![1, 2]][..])
    );
    assert_eq!((all.object["k"].as_str(), &all.inner), ("v", &Inner { text: "x".into(), number: -7 }));
    assert_eq!(
        (all.words, all.newtype.0.as_str(), all.field),
        (vec!["one".into()], "n", Field::Value(vec![3]))
    );
    assert_eq!(parse(r#"{"field": null}"#).field, Field::Null);
    assert_eq!(parse("{}").field, Field::Absent);
    assert_eq!(parse(r#"{"field": [null]}"#).field, Field::Value(vec![0]));
}

#[test]
fn other_types_are_errors_and_say_where() {
    for text in [
        r#"{"flag": 0}"#,
        r#"{"number": "1"}"#,
        r#"{"number": -1}"#,
        r#"{"number": 1.5}"#,
        r#"{"number": true}"#,
        r#"{"text": 1}"#,
        r#"{"text": []}"#,
        r#"{"list": {}}"#,
        r#"{"list": "a"}"#,
        r#"{"object": []}"#,
        r#"{"inner": []}"#,
        r#"{"inner": ["x", 1]}"#,
        r#"{"words": 1}"#,
        r#"{"words": [1]}"#,
        r#"{"keys": ["a"]}"#,
        r#"{"text": nul}"#,
        r#"{"text": null"#,
        "[]",
        "{} {}",
        "",
    ] {
        let error = from_slice::<Everything>(text.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("line 1 column"), "{text}: {error}");
    }
    let deep = "[".repeat(1 << 20);
    from_slice::<Everything>(deep.as_bytes()).unwrap_err();
}
