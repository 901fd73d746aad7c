{{- define "enricher.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 53 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "enricher.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "enricher.labels" -}}
{{ include "enricher.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "enricher.image" -}}
{{- $flavour := ternary "gpu" "cpu" (gt (int .Values.gpu.count) 0) -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $flavour) }}
{{- end }}

{{- /* One setting, or its default: (list . "http" "port" 8080) */}}
{{- define "enricher.setting" -}}
{{- $section := dig (index . 1) dict (index . 0).Values.settings | default dict -}}
{{- $value := get $section (index . 2) -}}
{{- if kindIs "invalid" $value }}{{ index . 3 }}{{ else }}{{ if hasKey $section (index . 2) }}{{ $value }}{{ else }}{{ index . 3 }}{{ end }}{{ end }}
{{- end }}

{{- define "enricher.port" -}}
{{ include "enricher.setting" (list . "http" "port" 8080) }}
{{- end }}

{{- define "enricher.maxReplicas" -}}
{{- if eq .Values.autoscaling.kind "none" }}{{ .Values.replicas }}{{ else }}{{ .Values.autoscaling.maxReplicas | default .Values.partitions }}{{ end }}
{{- end }}

{{- /* settings.toml: JSON's strings, numbers, booleans and lists are TOML's */}}
{{- define "enricher.toml" -}}
{{- range $section, $values := .Values.settings }}
[{{ $section }}]
{{- range $name, $value := $values }}{{ if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{ $name }} = {{ toRawJson $value }}
{{- end }}{{ end }}
{{- range $name, $value := $values }}{{ if kindIs "map" $value }}
[{{ $section }}.{{ $name }}]
{{- range $property, $one := $value }}
{{ toRawJson $property }} = {{ toRawJson $one }}
{{- end }}
{{- end }}{{ end }}
{{ end }}
{{- end }}

{{- define "enricher.secretFile" -}}
CONSUMER_{{ . | replace "." "__" | upper }}_FILE
{{- end }}

{{- define "enricher.bundle" -}}
{{- if eq .Values.model.from "image" }}/models/bundle/bundle{{ else if eq .Values.model.from "claim" }}/models/{{ .Values.model.bundle }}{{ else }}/models/bundle{{ end }}
{{- end }}

{{- define "enricher.environment" -}}
- name: CONSUMER_CONFIG
  value: /etc/enricher/settings.toml
{{- range $setting, $from := .Values.secretSettings }}
- name: {{ include "enricher.secretFile" $setting }}
  value: /etc/enricher/secrets/{{ $setting }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "enricher.mounts" -}}
- {name: settings, mountPath: /etc/enricher, readOnly: true}
{{- if .Values.secretSettings }}
- {name: secrets, mountPath: /etc/enricher/secrets, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "enricher.volumes" -}}
- name: settings
  configMap: {name: {{ include "enricher.name" . }}}
{{- if .Values.secretSettings }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
    {{- range $setting, $from := .Values.secretSettings }}
    # Optional, so that the service starts and says which setting's file is not there.
    - secret: {name: {{ $from.secret | default (include "enricher.name" $) | quote }}, optional: true, items: [{key: {{ $from.key | default $setting | quote }}, path: {{ $setting | quote }}}]}
    {{- end }}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.tmpSizeLimit }}}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "enricher.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "enricher.containerSecurity" -}}
{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end }}

{{- /* What the schema cannot say. */}}
{{- define "enricher.check" -}}
{{- range $setting, $from := .Values.secretSettings }}
{{- $parts := splitList "." $setting }}
{{- if and (ne (last $parts) "properties") (hasKey (dig (first $parts) dict $.Values.settings | default dict) (last $parts)) }}
{{- fail (printf "%s: expected in settings or in secretSettings, found in both" $setting) }}
{{- end }}
{{- end }}
{{- if and .Values.model.bundle (hasKey (dig "model" dict .Values.settings | default dict) "bundle") }}
{{- fail "expected one of model.bundle and settings.model.bundle, found both" }}
{{- end }}
{{- if and .Values.model.bundle (eq .Values.model.from "claim") (not .Values.model.claim) }}
{{- fail "model.from is claim: expected the claim's name in model.claim, found none" }}
{{- end }}
{{- if and .Values.engine.build (not (int .Values.gpu.count)) }}
{{- fail "engine.build needs a GPU: expected gpu.count >= 1, found 0" }}
{{- end }}
{{- end }}
