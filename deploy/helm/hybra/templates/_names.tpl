{{- define "hybra.name" -}}
{{ printf "%s" .Release.Name | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- define "hybra.selector" -}}
app.kubernetes.io/name: hybra
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "hybra.labels" -}}
{{ include "hybra.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "hybra.kind" -}}
{{ ternary "StatefulSet" "Deployment" .Values.persistence.enabled }}
{{- end }}
