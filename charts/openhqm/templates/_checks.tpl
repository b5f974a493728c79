{{/* Contradictions, each told as a sentence; read once, with the operator's Deployment. */}}
{{- define "openhqm.checks" -}}
{{- $external := .Values.redis.external -}}
{{- if and $external.url $external.secretName }}
{{- fail "redis.external.url and redis.external.secretName both say where the store is: give one of them" }}
{{- end }}
{{- if and $external.secretName (not $external.publicUrl) }}
{{- fail "redis.external.secretName needs redis.external.publicUrl: the address that sidecars reach, without credentials" }}
{{- end }}
{{- if and $external.publicUrl (contains "@" $external.publicUrl) }}
{{- fail "redis.external.publicUrl is shown to every namespace: give it without user and password" }}
{{- end }}
{{- if and $external.publicUrl (not $external.url) (not $external.secretName) }}
{{- fail "redis.external.publicUrl alone is not enough: redis.external.url or redis.external.secretName says how the operator logs in" }}
{{- end }}
{{- if and (not .Values.redis.enabled) (or $external.url $external.secretName) }}
{{- fail "redis.enabled is false and redis.external is given: an external one counts as long as redis.enabled is true, which brings none along then" }}
{{- end }}
{{- $certs := .Values.webhook.certs -}}
{{- if and (eq $certs.mode "provided") (not $certs.provided.secretName) }}
{{- fail "webhook.certs.mode is provided: say in webhook.certs.provided.secretName where the certificate is" }}
{{- end }}
{{- if and (ne $certs.mode "provided") $certs.provided.secretName }}
{{- fail (printf "webhook.certs.provided.secretName is given, but webhook.certs.mode is %s: set the mode to provided or leave the name empty" $certs.mode) }}
{{- end }}
{{- if and (ne $certs.mode "certManager") $certs.certManager.issuerRef }}
{{- fail (printf "webhook.certs.certManager.issuerRef is given, but webhook.certs.mode is %s: set the mode to certManager or leave the issuer empty" $certs.mode) }}
{{- end }}
{{- if and .Values.rbac.namespace (eq .Values.rbac.namespace .Release.Namespace) }}
{{- fail (printf "rbac.namespace is the release's own namespace %s, whose Pods are never given a sidecar: install into another one" .Release.Namespace) }}
{{- end }}
{{- if and (not .Values.crds.keep) (not .Values.uninstall.enabled) }}
{{- fail "crds.keep is false and uninstall.enabled is false: the definition could never be deleted, as AsyncProxies wait for an operator that is gone; leave one of them true" }}
{{- end }}
{{- if and (not .Values.redis.persistence.enabled) (eq .Values.redis.appendfsync "everysec") (include "openhqm.bundlesRedis" .) }}
{{- fail "redis.appendfsync everysec without redis.persistence.enabled would keep nothing worth the name: leave it always" }}
{{- end }}
{{- end }}
