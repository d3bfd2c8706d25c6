//! Hides passwords in texts that people and programs read later: messages, records, configurations.

/// What replaces a password.
const HIDDEN: &str = "...";
/// The placeholder for a password in messages and documents.
const PLACEHOLDER: &str = "PASSWORD";

/// Replaces the passwords of all URLs in a text by `...`. In `postgres://user:password@host/name`, the password is the part between
/// the user and the last `@` of the word; it may also be the value of a parameter `password`.
pub fn hide_passwords(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let end = after.find(|c: char| c.is_whitespace() || "\"'`".contains(c)).unwrap_or(after.len());
        let (url, further) = after.split_at(end);
        shown.push_str(before);
        shown.push_str(&hide_in_url(url));
        rest = further;
    }
    shown.push_str(rest);
    shown
}

fn hide_in_url(url: &str) -> String {
    let mut shown = match url.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((name, password)) if password != PLACEHOLDER => format!("{name}:{HIDDEN}@{host}"),
            _ => url.to_owned(),
        },
        None => url.to_owned(),
    };
    const PARAMETER: &str = "password=";
    if let Some(at) = shown.find(PARAMETER).map(|at| at + PARAMETER.len()) {
        let end = shown[at..].find('&').map_or(shown.len(), |end| at + end);
        shown.replace_range(at..end, HIDDEN);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_urls_are_hidden_wherever_they_occur() {
        for (text, shown) in [
            ("postgres://u:secret@h:5432/d", "postgres://u:...@h:5432/d"),
            ("postgresql://u:se:cr@et/x?y@h/d?sslmode=require", "postgresql://u:...@h/d?sslmode=require"),
            (
                "postgres://h/d?user=u&password=secret&sslmode=require",
                "postgres://h/d?user=u&password=...&sslmode=require",
            ),
            ("postgres://h/d?password=secret", "postgres://h/d?password=..."),
            ("postgres://u@h/d", "postgres://u@h/d"),
            (
                "--set serve.stroe=postgres://u:s@h/d and https://a:b@c",
                "--set serve.stroe=postgres://u:...@h/d and https://a:...@c",
            ),
            ("store = \"postgres://u:s@h/d\" # mine@home", "store = \"postgres://u:...@h/d\" # mine@home"),
            ("write `postgres://USER:PASSWORD@HOST/DATABASE`", "write `postgres://USER:PASSWORD@HOST/DATABASE`"),
            ("no address: a:b@c", "no address: a:b@c"),
            ("https://host/path", "https://host/path"),
        ] {
            assert_eq!(hide_passwords(text), shown);
        }
    }
}
