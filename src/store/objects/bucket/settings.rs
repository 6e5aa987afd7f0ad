//! Where a bucket is and who asks, found where programs for S3 look: first what the environment says,
//! then a profile of `~/.aws`, then who runs this machine or container.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use object_store::RetryConfig;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use ureq::http::Uri;

use super::profile::{Profile, set};
use super::wire::Wire;
use crate::error::{Error, Result, escape};

/// See the module.
pub struct Settings {
    builder: AmazonS3Builder,
    /// Where the bucket is, for messages.
    pub endpoint: String,
    /// Whether this machine may be asked for its keys in the old way.
    pub old_metadata: bool,
    /// A file with the certificates of the authorities that are trusted.
    pub ca: Option<PathBuf>,
}

impl Settings {
    /// What is to be found. Nobody is asked.
    pub fn find(variables: &BTreeMap<String, String>) -> Result<Settings> {
        let profile = Profile::read(variables)?;
        let mut builder = AmazonS3Builder::new();
        for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
            let key = name.strip_prefix("AWS_").map(|_| name.to_ascii_lowercase().parse());
            if let Some(Ok(key)) = key
                && !matches!(key, AmazonS3ConfigKey::Client(_) | AmazonS3ConfigKey::Bucket)
            {
                builder = builder.with_config(key, value);
            }
        }
        let any = |names: &[&str]| names.iter().find_map(|name| set(variables, name));
        builder = with_keys(builder, &profile, variables)?;
        let region = any(&["AWS_REGION", "AWS_DEFAULT_REGION"]).or_else(|| profile.get("region"));
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        let endpoint = any(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
        let endpoint = endpoint.or_else(|| profile.get("endpoint_url"));
        if let Some(endpoint) = endpoint {
            check_endpoint(endpoint)?;
            builder = builder.with_endpoint(endpoint);
        }
        let endpoint = endpoint.map_or_else(
            || format!("https://s3.{}.amazonaws.com", region.unwrap_or("us-east-1")),
            str::to_string,
        );
        let ca = any(&["AWS_CA_BUNDLE"]).or_else(|| profile.get("ca_bundle")).map(PathBuf::from);
        let old_metadata = any(&["AWS_IMDSV1_FALLBACK"]).is_some();
        Ok(Settings { builder, endpoint: escape(endpoint.as_bytes()), old_metadata, ca })
    }

    /// The bucket, asked over `wire`. Whoever asks tries again by himself.
    pub fn build(self, bucket: &str, wire: Wire) -> Result<AmazonS3> {
        let once = RetryConfig { max_retries: 0, retry_timeout: Duration::MAX, ..RetryConfig::default() };
        let builder = self.builder.with_bucket_name(bucket).with_http_connector(wire).with_retry(once);
        // One request removes one object: not everybody knows another one.
        builder.with_disable_bulk_delete(true).build().map_err(|error| {
            let told = escape(error.to_string().as_bytes());
            Error::Usage(format!(
                "s3://{bucket}: what the environment says of it (AWS_…) cannot be used: {told}"
            ))
        })
    }
}

/// With the keys of the profile, where the environment has none.
fn with_keys(
    builder: AmazonS3Builder,
    profile: &Profile,
    variables: &BTreeMap<String, String>,
) -> Result<AmazonS3Builder> {
    let has = |name| set(variables, name).is_some();
    let given = has("AWS_ACCESS_KEY_ID") || has("AWS_SECRET_ACCESS_KEY");
    let by_token = has("AWS_WEB_IDENTITY_TOKEN_FILE") && has("AWS_ROLE_ARN");
    let anybody =
        set(variables, "AWS_SKIP_SIGNATURE").is_some_and(|value| !value.eq_ignore_ascii_case("false"));
    if given || by_token || anybody {
        return Ok(builder);
    }
    if let (Some(id), Some(secret)) = (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key"))
    {
        let builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        return Ok(match profile.get("aws_session_token") {
            Some(token) => builder.with_token(token),
            None => builder,
        });
    }
    let other = ["credential_process", "sso_session", "sso_start_url", "role_arn"];
    if let Some(other) = other.iter().find(|key| profile.get(key).is_some()) {
        let name = escape(profile.name.as_bytes());
        return Err(Error::Usage(format!(
            "the profile {name} of ~/.aws has its keys by {other}, which is not known here: run eval \"$(aws configure \
             export-credentials --profile {name} --format env)\" first, which sets AWS_ACCESS_KEY_ID and the others"
        )));
    }
    Ok(builder)
}

fn check_endpoint(endpoint: &str) -> Result<()> {
    let parsed = endpoint.parse::<Uri>().ok().filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && uri.host().is_some_and(|host| !host.is_empty())
            && uri.query().is_none()
    });
    match parsed {
        Some(_) => Ok(()),
        // It may have a password in it.
        None => Err(Error::Usage(
            "the endpoint of a bucket is no URL that can be used: AWS_ENDPOINT_URL, or endpoint_url in a profile of \
             ~/.aws/config, is http://host[:port] or https://host[:port]"
                .into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<Settings> {
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Settings::find(&variables.collect())
    }

    #[test]
    fn the_environment_goes_before_a_profile() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let config = "[default]\naws_access_key_id = P\naws_secret_access_key = S\nregion = there\nendpoint_url = http://p\n";
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        let home = home.path().to_str().unwrap();
        let value = |settings: &Settings, key| settings.builder.get_config_value(&key);
        let found = find(&[("HOME", home)]).unwrap();
        assert_eq!(value(&found, AmazonS3ConfigKey::AccessKeyId).as_deref(), Some("P"));
        assert_eq!(value(&found, AmazonS3ConfigKey::Region).as_deref(), Some("there"));
        assert_eq!(found.endpoint, "http://p");
        let keys = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "T")];
        let others =
            [("AWS_DEFAULT_REGION", "here"), ("AWS_ENDPOINT_URL_S3", "http://s3"), ("AWS_BUCKET", "x")];
        let found =
            find(&[&keys[..], &others, &[("HOME", home), ("AWS_ENDPOINT_URL", "http://all")]].concat())
                .unwrap();
        assert_eq!(value(&found, AmazonS3ConfigKey::AccessKeyId).as_deref(), Some("E"));
        assert_eq!(value(&found, AmazonS3ConfigKey::Region).as_deref(), Some("here"));
        assert_eq!(value(&found, AmazonS3ConfigKey::Bucket), None);
        assert_eq!(found.endpoint, "http://s3");
    }

    #[test]
    fn what_cannot_be_used_is_told_without_its_secrets() {
        for bad in ["localhost:9000", "http://u:sesame@h", "https://", "http://h/?x"] {
            let error = find(&[("AWS_ENDPOINT_URL", bad)]).err().unwrap();
            assert!(error.exit_code() == 1 && !error.to_string().contains("sesame"), "{bad}: {error}");
        }
    }
}
