//! Profiles of `~/.aws/credentials` and `~/.aws/config`, as the programs of Amazon read them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::error::{Error, Result, escape};

/// The longest of these files.
const LONGEST: u64 = 4 << 20;

type Variables = BTreeMap<String, String>;
type Keys = BTreeMap<String, String>;

/// What stands in the profile that is meant; nothing where there is none.
#[derive(Default)]
pub struct Profile {
    /// How it is called.
    pub name: String,
    keys: Keys,
}

impl Profile {
    /// The one that `AWS_PROFILE` names, or `default`.
    ///
    /// # Errors
    ///
    /// When a file cannot be read that is there; when one is named that is in none of them.
    pub fn read(variables: &Variables) -> Result<Profile> {
        let named = ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"].iter().find_map(|name| set(variables, name));
        let name = named.unwrap_or("default");
        let config = read_file(variables, "AWS_CONFIG_FILE", "config")?;
        let credentials = read_file(variables, "AWS_SHARED_CREDENTIALS_FILE", "credentials")?;
        let mut sections = vec![config.get(&format!("profile {name}")), credentials.get(name)];
        if name == "default" {
            sections.insert(0, config.get(name));
        }
        let found: Vec<&Keys> = sections.into_iter().flatten().collect();
        if found.is_empty() && named.is_some() {
            let shown = escape(name.as_bytes());
            return Err(Error::Usage(format!(
                "there is no profile {shown} in ~/.aws/credentials, nor in ~/.aws/config: AWS_PROFILE names it"
            )));
        }
        let mut keys = Keys::new();
        for section in found {
            keys.extend(section.clone());
        }
        // What is for S3 alone goes before what is for all services.
        let services = keys.get("services").and_then(|services| config.get(&format!("services {services}")));
        if let Some(endpoint) = services.and_then(|services| services.get("s3.endpoint_url")) {
            keys.insert("endpoint_url".into(), endpoint.clone());
        }
        Ok(Profile { name: name.into(), keys })
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.keys.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// A variable that says something.
pub fn set<'a>(variables: &'a Variables, name: &str) -> Option<&'a str> {
    variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// The sections of one of the files; none: it is not there.
fn read_file(variables: &Variables, named_by: &str, name: &str) -> Result<BTreeMap<String, Keys>> {
    let home = set(variables, "HOME").map(PathBuf::from);
    let path = match (set(variables, named_by), home) {
        (Some(path), Some(home)) => {
            path.strip_prefix("~/").map_or(PathBuf::from(path), |rest| home.join(rest))
        }
        (Some(path), None) => PathBuf::from(path),
        (None, Some(home)) => home.join(".aws").join(name),
        (None, None) => return Ok(BTreeMap::new()),
    };
    let mut text = Vec::new();
    match File::open(&path).and_then(|file| file.take(LONGEST).read_to_end(&mut text)) {
        Ok(_) => Ok(parse(&String::from_utf8_lossy(&text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Sections, their names with one space between words, and their keys in lower case; a key that is
/// indented below another one follows that and a dot.
fn parse(text: &str) -> BTreeMap<String, Keys> {
    let mut sections: BTreeMap<String, Keys> = BTreeMap::new();
    let (mut section, mut above) = (None, String::new());
    for line in text.lines() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = bare.strip_prefix('[') {
            let name = name.split(']').next().unwrap_or_default().replace(['"', '\''], " ");
            let name = name.split_whitespace().collect::<Vec<_>>().join(" ");
            sections.entry(name.clone()).or_default();
            (section, above) = (Some(name), String::new());
            continue;
        }
        let Some((key, value)) = bare.split_once('=') else { continue };
        let value = [" #", " ;", "\t#", "\t;"]
            .iter()
            .filter_map(|mark| value.find(mark))
            .min()
            .map_or(value, |at| &value[..at]);
        let key = key.trim().to_ascii_lowercase();
        let key = if line.starts_with([' ', '\t']) && !above.is_empty() {
            format!("{above}.{key}")
        } else {
            above.clone_from(&key);
            key
        };
        if let Some(keys) = section.as_ref().and_then(|section| sections.get_mut(section)) {
            keys.insert(key, value.trim().to_string());
        }
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(credentials: &str, config: &str, profile: Option<&str>) -> Result<Profile> {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        let mut variables = Variables::new();
        variables.insert("HOME".into(), home.path().to_str().unwrap().into());
        if let Some(profile) = profile {
            variables.insert("AWS_PROFILE".into(), profile.into());
        }
        Profile::read(&variables)
    }

    const CREDENTIALS: &str = "# mine\n[default]\nAWS_Access_Key_Id=A\n[ other ]\n aws_access_key_id = B # the new one\n\
                               aws_secret_access_key = x+/=#y\n";
    const CONFIG: &str = "[default]\nregion = here\n[profile other]\nregion = there\nservices = mine\ns3 =\n  \
                          max_concurrent_requests = 3\nendpoint_url = http://all\n[profile  \"a b\"]\nregion=x\n\
                          [services mine]\ns3 =\n  endpoint_url = http://s3:1\n";

    #[test]
    fn a_profile_is_found_in_both_files() {
        let profile = read(CREDENTIALS, CONFIG, None).unwrap();
        assert_eq!((profile.get("aws_access_key_id"), profile.get("region")), (Some("A"), Some("here")));
        let profile = read(CREDENTIALS, CONFIG, Some("other")).unwrap();
        assert_eq!((profile.get("aws_access_key_id"), profile.get("region")), (Some("B"), Some("there")));
        assert_eq!(profile.get("aws_secret_access_key"), Some("x+/=#y"));
        assert_eq!(
            (profile.get("endpoint_url"), profile.get("s3.max_concurrent_requests")),
            (Some("http://s3:1"), Some("3"))
        );
        assert_eq!(read(CREDENTIALS, CONFIG, Some("a b")).unwrap().get("region"), Some("x"));
    }

    #[test]
    fn one_that_is_named_has_to_be_there() {
        assert!(read("", "", None).unwrap().keys.is_empty());
        assert_eq!(read(CREDENTIALS, CONFIG, Some("none")).err().unwrap().exit_code(), 1);
        assert!(Profile::read(&Variables::new()).unwrap().keys.is_empty());
    }
}
