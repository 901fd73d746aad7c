{{- /* Where the bundle and the engine come from. */}}
{{- define "enricher.modelMounts" -}}
{{- if .Values.model.bundle }}
- {name: model, mountPath: {{ ternary "/models/bundle" "/models" (eq .Values.model.from "image") }}, readOnly: true}
{{- end }}
{{- if int .Values.gpu.count }}
- {name: engines, mountPath: /home/enricher/.cache/listing-enricher}
{{- end }}
{{- end }}

{{- define "enricher.modelVolumes" -}}
{{- if .Values.model.bundle }}
- name: model
  {{- if eq .Values.model.from "image" }}
  image: {reference: {{ .Values.model.bundle | quote }}, pullPolicy: {{ .Values.model.pullPolicy }}}
  {{- else if eq .Values.model.from "claim" }}
  persistentVolumeClaim: {claimName: {{ .Values.model.claim }}, readOnly: true}
  {{- else }}
  emptyDir: {sizeLimit: 1Gi}
  {{- end }}
{{- end }}
{{- if int .Values.gpu.count }}
- name: engines
  {{- if .Values.engine.claim }}
  persistentVolumeClaim: {claimName: {{ .Values.engine.claim }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .Values.engine.cacheSizeLimit }}}
  {{- end }}
{{- end }}
{{- end }}

{{- define "enricher.initContainers" -}}
{{- if and .Values.model.bundle (eq .Values.model.from "init-container") }}
- name: bundle
  image: {{ .Values.model.bundle | quote }}
  imagePullPolicy: {{ .Values.model.pullPolicy }}
  command: [cp, -r, /bundle, /models/bundle]
  resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 256Mi}}
  securityContext: {{ include "enricher.containerSecurity" . }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
  - {name: model, mountPath: /models}
{{- end }}
{{- if .Values.engine.build }}
- name: engine
  image: {{ include "enricher.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  # The cache locks: of pods that start together on one claim the first builds, the others wait and take what it made.
  command: [timeout, {{ .Values.engine.buildTimeoutSeconds | quote }}, python3, -m, build_engine, build, --bundle, {{ ternary (include "enricher.bundle" .) "/opt/enricher/model/bundles/books" (ne .Values.model.bundle "") }}]
  env:
  - {name: HOME, value: /home/enricher}
  resources:
    limits: {memory: 8Gi, {{ .Values.gpu.resource }}: {{ .Values.gpu.count }}}
  securityContext: {{ include "enricher.containerSecurity" . }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- include "enricher.modelMounts" . | trim | nindent 2 }}
{{- end }}
{{- end }}
