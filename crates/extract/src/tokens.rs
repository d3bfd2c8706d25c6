//! Checks `tokenizer_config.json` against the tokenizer in `tokenizer.json`. Every setting is followed, or refused by name.
//!
//! Reference: transformers 5.24. The keys that change tokens there were found by changing each key for every tokenizer class of the
//! supported encoders. Classes that are built from their settings (such as `BertTokenizer`) follow more keys than those that take
//! `tokenizer.json` as it is.

use serde_json::Value;
use tokenizers::{Tokenizer, TruncationDirection};

/// Classes that take `tokenizer.json` as it is.
const AS_IT_IS: [&str; 2] = ["TokenizersBackend", "PreTrainedTokenizerFast"];
/// Tokens by their role; a class that is built from its settings adds those that the vocabulary lacks.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "cls_token", "sep_token", "pad_token", "mask_token", "unk_token"];

/// The end at which long texts are cut, or the reason why the settings are not supported. `tokenizer` is that of `tokenizer.json`, whose
/// content is `whole`.
pub(crate) fn check(settings: &Value, tokenizer: &Tokenizer, whole: &Value) -> Result<TruncationDirection, String> {
    if settings["split_special_tokens"] == true {
        return Err("split_special_tokens: expected false, found true".to_owned());
    }
    expect_added(settings, tokenizer)?;
    let class = settings["tokenizer_class"].as_str().unwrap_or_default();
    if !class.is_empty() && !AS_IT_IS.contains(&class) {
        expect_prefix(settings, class, whole)?;
    }
    // Without a class, the library takes that of the model type.
    if !AS_IT_IS.contains(&class) {
        expect_roles(settings, tokenizer, whole)?;
        expect_letters(settings, whole)?;
    }
    match settings["truncation_side"].as_str() {
        None if whole["truncation"]["direction"] == "Left" => Ok(TruncationDirection::Left),
        None | Some("right") => Ok(TruncationDirection::Right),
        Some("left") => Ok(TruncationDirection::Left),
        Some(other) => Err(format!("truncation_side: expected right or left, found {other}")),
    }
}

/// Checks `special_tokens_map.json`, whose tokens replace those of `settings`, the content of `tokenizer_config.json`.
pub(crate) fn check_map(map: &Value, settings: &Value, tokenizer: &Tokenizer, whole: &Value) -> Result<(), String> {
    let class = settings["tokenizer_class"].as_str().unwrap_or_default();
    if AS_IT_IS.contains(&class) { Ok(()) } else { expect_roles(map, tokenizer, whole) }
}

/// The text of a token, which is written as text or as an object.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str())
}

/// Checks that the tokens at which texts are split are those of `tokenizer.json`.
fn expect_added(settings: &Value, tokenizer: &Tokenizer) -> Result<(), String> {
    let added = tokenizer.get_added_vocabulary().get_vocab();
    for key in ["added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"] {
        let tokens: Vec<&Value> = match &settings[key] {
            Value::Array(tokens) => tokens.iter().collect(),
            Value::Object(tokens) => tokens.values().collect(),
            _ => Vec::new(),
        };
        if let Some(missing) = tokens.into_iter().filter_map(content).find(|token| !added.contains_key(*token)) {
            return Err(format!("{key}: expected tokens that tokenizer.json adds, found {missing:?}"));
        }
    }
    Ok(())
}

fn expect_roles(settings: &Value, tokenizer: &Tokenizer, whole: &Value) -> Result<(), String> {
    let added = tokenizer.get_added_vocabulary().get_vocab();
    for role in ROLES {
        let Some(token) = content(&settings[role]) else { continue };
        let unknown = whole["model"]["unk_token"].as_str();
        let is_unknown = role == "unk_token" && unknown.is_some();
        let is_known = if is_unknown { unknown == Some(token) } else { added.contains_key(token) };
        if !is_known {
            return Err(format!("{role}: expected a token that tokenizer.json has for it, found {token:?}"));
        }
    }
    let [first, last] = tokens_around(&whole["post_processor"]);
    for (role, used) in [("cls_token", first), ("sep_token", last)] {
        if let (Some(token), Some(used)) = (content(&settings[role]), used)
            && token != used
        {
            return Err(format!(
                "{role}: expected {used:?} as in the post-processor of tokenizer.json, found {token:?}"
            ));
        }
    }
    Ok(())
}

/// The tokens that a post-processor puts before and after a text.
fn tokens_around(processor: &Value) -> [Option<&str>; 2] {
    match processor["type"].as_str() {
        Some("BertProcessing" | "RobertaProcessing") => ["cls", "sep"].map(|role| processor[role][0].as_str()),
        Some("TemplateProcessing") => {
            let parts = processor["single"].as_array().map_or(&[][..], Vec::as_slice);
            [parts.first(), parts.last()].map(|part| part?["SpecialToken"]["id"].as_str())
        }
        Some("Sequence") => {
            let inner = processor["processors"].as_array().into_iter().flatten().map(tokens_around);
            inner.into_iter().find(|tokens| tokens.iter().any(Option::is_some)).unwrap_or_default()
        }
        _ => [None, None],
    }
}

/// Collects a part and all parts within it.
fn parts<'a>(part: &'a Value, found: &mut Vec<&'a Value>) {
    for list in ["normalizers", "pretokenizers"] {
        part[list].as_array().into_iter().flatten().for_each(|inner| parts(inner, found));
    }
    found.push(part);
}

fn part_of_type<'a>(whole: &'a Value, kind: &str, of_type: &str) -> Option<&'a Value> {
    let mut found = Vec::new();
    parts(&whole[kind], &mut found);
    found.into_iter().find(|part| part["type"] == of_type)
}

/// Checks how letters are changed before texts are split.
fn expect_letters(settings: &Value, whole: &Value) -> Result<(), String> {
    let refuse = |key: &str, found: bool| {
        Err(format!("{key}: expected {} as in the normalizer of tokenizer.json, found {found}", !found))
    };
    let Some(bert) = part_of_type(whole, "normalizer", "BertNormalizer") else {
        let lowers = part_of_type(whole, "normalizer", "Lowercase").is_some();
        return match settings["do_lower_case"].as_bool() {
            Some(found) if found && !lowers => refuse("do_lower_case", found),
            _ => Ok(()),
        };
    };
    let lowercase = bert["lowercase"].as_bool().unwrap_or(true);
    let strips = bert["strip_accents"].as_bool().unwrap_or(lowercase);
    let splits = bert["handle_chinese_chars"].as_bool().unwrap_or(true);
    for (key, is) in [("do_lower_case", lowercase), ("strip_accents", strips), ("tokenize_chinese_chars", splits)] {
        if let Some(found) = settings[key].as_bool().filter(|found| *found != is) {
            return refuse(key, found);
        }
    }
    Ok(())
}

/// Checks whether the start of a text is treated like a word after a space.
fn expect_prefix(settings: &Value, class: &str, whole: &Value) -> Result<(), String> {
    let Some(found) = settings["add_prefix_space"].as_bool() else { return Ok(()) };
    let bytes = part_of_type(whole, "pre_tokenizer", "ByteLevel").and_then(|part| part["add_prefix_space"].as_bool());
    let meta = part_of_type(whole, "pre_tokenizer", "Metaspace").map(|part| part["prepend_scheme"] != "never");
    // CLIP's class does not read this key.
    match bytes.or(meta).filter(|_| !class.starts_with("CLIP")) {
        Some(is) if is != found => {
            Err(format!("add_prefix_space: expected {is} as in the pre-tokenizer of tokenizer.json, found {found}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Checks keys that change tokens in the reference, and keys that do not, for the tokenizer classes of several fixtures.
    #[test]
    fn every_key_that_changes_tokens_is_supported_or_refused_and_no_other() {
        let check_of = |fixture: &str, class: &str, key: &str, value: Value| {
            let path = format!("{}/tests/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR"));
            let whole: Value =
                serde_json::from_slice(&std::fs::read(format!("{path}/tokenizer.json")).unwrap()).unwrap();
            let tokenizer = Tokenizer::from_file(format!("{path}/tokenizer.json")).unwrap();
            let text = std::fs::read(format!("{path}/tokenizer_config.json")).unwrap();
            let mut settings: Value = serde_json::from_slice(&text).unwrap();
            settings["tokenizer_class"] = json!(class);
            settings[key] = value;
            check(&settings, &tokenizer, &whole)
        };
        let refused = |fixture: &str, class: &str, key: &str, value: Value| {
            let message = check_of(fixture, class, key, value).unwrap_err();
            assert!(message.starts_with(&format!("{key}: expected ")), "{message}");
        };
        let extra = json!({"7": {"content": "wor", "special": true}});
        for (fixture, class) in [
            ("bert", "TokenizersBackend"),
            ("bert", "BertTokenizer"),
            ("mpnet", "MPNetTokenizer"),
            ("roberta", "RobertaTokenizer"),
            ("adapter/qwen3", "Qwen2Tokenizer"),
        ] {
            refused(fixture, class, "split_special_tokens", json!(true));
            refused(fixture, class, "additional_special_tokens", json!(["Hello"]));
            refused(fixture, class, "extra_special_tokens", json!({"foo": "Hello"}));
            refused(fixture, class, "added_tokens_decoder", extra.clone());
            let cut = check_of(fixture, class, "truncation_side", json!("left"));
            assert!(matches!(cut, Ok(TruncationDirection::Left)), "{class}");
            for (key, value) in [
                ("padding_side", json!("left")),
                ("clean_up_tokenization_spaces", json!(true)),
                ("model_max_length", json!(7)),
                ("do_basic_tokenize", json!(false)),
                ("never_split", json!(["Hello"])),
                ("trim_offsets", json!(false)),
                ("use_fast", json!(false)),
                ("max_length", json!(5)),
                ("stride", json!(2)),
                ("pad_to_multiple_of", json!(8)),
                ("keep_accents", json!(true)),
                ("errors", json!("replace")),
            ] {
                let found = check_of(fixture, class, key, value);
                assert!(matches!(found, Ok(TruncationDirection::Right)), "{class}, {key}: {found:?}");
            }
        }
        for key in ["do_lower_case", "strip_accents", "tokenize_chinese_chars"] {
            refused("bert", "BertTokenizer", key, json!(false));
            refused("mpnet", "MPNetTokenizer", key, json!(false));
            assert!(check_of("bert", "BertTokenizer", key, json!(true)).is_ok());
            assert!(check_of("bert", "TokenizersBackend", key, json!(false)).is_ok(), "the class takes no such key");
        }
        for key in ["cls_token", "sep_token"] {
            refused("bert", "BertTokenizer", key, json!("x"));
            refused("roberta", "RobertaTokenizer", key, json!({"content": "x"}));
            assert!(check_of("bert", "TokenizersBackend", key, json!("x")).is_ok());
            for class in ["", "BertTokenizer"] {
                refused("bert", class, key, json!("[MASK]"));
            }
            assert!(check_of("bert", "TokenizersBackend", key, json!("[MASK]")).is_ok());
        }
        refused("bert", "BertTokenizer", "unk_token", json!("the"));
        refused("roberta", "RobertaTokenizer", "add_prefix_space", json!(true));
        refused("adapter/qwen3", "Qwen2Tokenizer", "add_prefix_space", json!(true));
        refused("xlm-roberta", "XLMRobertaTokenizer", "add_prefix_space", json!(false));
        refused("adapter/deberta-v2", "DebertaV2Tokenizer", "do_lower_case", json!(true));
    }
}
